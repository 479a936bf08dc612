# docker build -t parakeet-api .                         with CUDA, 6.4 GB on top of Python's image
# docker build -t parakeet-api --build-arg TORCH=cpu .   2.4 GB, for machines without a GPU
# docker build -t parakeet-api-ray --build-arg RAY=yes . with Ray, for several machines: 0.3 GB more
#
# A package mirror: --secret id=pip,src=pip.conf configures pip, and is not stored in the image.
# Another index for torch's CPU wheels: --build-arg TORCH_CPU_INDEX=https://...

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
ARG TORCH=cuda
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ARG RAY=
WORKDIR /build
# Only the lists of packages, so that a change of the code does not invalidate this layer.
COPY requirements.txt requirements-ray.txt constraints.txt ./
# PyPI's torch depends on the CUDA libraries. The server detects the GPU with cuda-python.
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
    install -r requirements.txt ${RAY:+-r requirements-ray.txt} -c constraints.txt

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Parakeet API" \
      org.opencontainers.image.description="Speech-to-text server around NVIDIA's Parakeet-TDT, with OpenAI's API" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="MIT"

# ffmpeg is the one inside imageio-ffmpeg, 173 MB: Debian's depends on 192 packages of 472 MB.
COPY --from=packages /opt/venv /opt/venv

# HOME       a writable home for any user of the container
# HF_HOME    folder of downloads if models/ is mounted read-only
# NUMBA_...  librosa compiles when it is imported, by default into its own folder
# TORCH...   the default contains the user's name, and the user may have none
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/cache/huggingface \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    DEMO_MODEL=never \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app
COPY . .
# Readable by every user, whatever the umask of the checkout. The two writable folders have the mode
# of /tmp, so that any user can write to them; a new named volume inherits that.
RUN chmod -R a+rX . && mkdir -p models temp_uploads /cache && chmod 1777 temp_uploads /cache

EXPOSE 5092
# Ten minutes: with ENABLE_LAZY_LOAD=false the server starts after the model is downloaded and loaded.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('PORT') or '5092') + '/health', timeout=8)"]

# As root it switches to PUID:PGID; it also works as any other user.
ENTRYPOINT ["/app/entrypoint.sh"]
CMD ["python", "app.py"]
