# docker build -t parakeet-api .                         with CUDA, 6.4 GB on top of Python's image
# docker build -t parakeet-api --build-arg TORCH=cpu .   2.4 GB, for machines without a GPU
#
# A package mirror: --secret id=pip,src=pip.conf hands pip its configuration, and leaves none of it in the image.
# Another home of torch's CPU wheels: --build-arg TORCH_CPU_INDEX=https://...

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
ARG TORCH=cuda
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
# Only what decides the packages: a change of the code leaves this layer as it is.
COPY requirements.txt constraints.txt ./
# PyPI's torch brings CUDA's libraries along. cuda-python is how the server finds the GPU.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/pip \
    set -eu; \
    python3 -m venv --without-pip /opt/venv; \
    install() { python3 -m pip --python /opt/venv/bin/python --cache-dir /var/cache/pip install --no-warn-script-location "$@"; }; \
    case "$TORCH" in \
        cuda) ;; \
        cpu) \
            torch="$(grep '^torch==' requirements.txt)+cpu"; \
            install --no-deps --index-url "$TORCH_CPU_INDEX" "$torch" || { \
                echo "TORCH=cpu: no $torch from TORCH_CPU_INDEX=$TORCH_CPU_INDEX (see pip's lines above)" >&2; \
                exit 1; \
            }; \
            sed -i '/^cuda-python==/d' requirements.txt ;; \
        *) echo "TORCH='$TORCH' is not cuda or cpu" >&2; exit 1 ;; \
    esac; \
    install -r requirements.txt -c constraints.txt

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Parakeet API" \
      org.opencontainers.image.description="Speech-to-text server around NVIDIA's Parakeet-TDT, with OpenAI's API" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"

# ffmpeg is the one inside imageio-ffmpeg, 173 MB: Debian's brings 192 packages of 472 MB.
COPY --from=packages /opt/venv /opt/venv

# HOME       whoever the container runs as has a home it can write to
# HF_HOME    where downloads go when models/ is mounted read-only
# NUMBA_...  librosa compiles when it is imported: into its own folder, if no other is named
# TORCH...   else a folder beside the uploads, named after a user who may have no name
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/cache/huggingface \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    DEMO_MODEL=never \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,max_split_size_mb:96,garbage_collection_threshold:0.85 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app
COPY . .
# Readable by every user, whatever the umask of the checkout. The two folders that are written to are
# like /tmp, so they also serve a user whom nobody announced; a new named volume inherits that.
RUN chmod -R a+rX . && mkdir -p models temp_uploads /cache && chmod 1777 temp_uploads /cache

EXPOSE 5092
# Ten minutes: with ENABLE_LAZY_LOAD=false nothing is served before the model is downloaded and loaded.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('PORT') or '5092') + '/health', timeout=8)"]

# Started as root, to become PUID:PGID; as any other user just as well.
ENTRYPOINT ["/app/entrypoint.sh"]
CMD ["python", "app.py"]
