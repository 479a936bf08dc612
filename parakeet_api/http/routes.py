"""The WSGI application: every blueprint, mounted."""

from __future__ import annotations

from pathlib import Path

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from parakeet_api.http.admin_routes import admin_api
from parakeet_api.http.asr_routes import asr_api
from parakeet_api.http.cross_origin import allow_origins
from parakeet_api.http.docs_routes import docs
from parakeet_api.http.head_check import install_head_check
from parakeet_api.http.job_routes import job_api
from parakeet_api.http.openai_routes import openai_api
from parakeet_api.http.pages import pages
from parakeet_api.http.proxies import TrustedProxies
from parakeet_api.http.rate_limits import limit_rates
from parakeet_api.http.url_spellings import SpellingOfPaths
from parakeet_api.http.web import (
    MULTIPART_OVERHEAD,
    Services,
    UploadRequest,
    answer_error,
    begin_request,
    finish_request,
)


def create_app(services: Services, *, root: Path) -> Flask:
    """Build the WSGI application; `root` holds `templates/` and `static/`."""
    app = Flask(
        "parakeet_api", template_folder=str(root / "templates"), static_folder=str(root / "static")
    )
    app.request_class = UploadRequest
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_upload_bytes + MULTIPART_OVERHEAD
    assert isinstance(app.json, DefaultJSONProvider)
    app.json.ensure_ascii = False
    # A reader looks for `status` first, not for what the alphabet puts there.
    app.json.sort_keys = False
    # A model's name may hold slashes, doubled ones too; a redirect would have another error shape.
    app.url_map.merge_slashes = False
    app.extensions["services"] = services
    app.before_request(begin_request)
    app.after_request(finish_request)
    install_head_check(app)
    if services.settings.cors_origins:
        allow_origins(app, services.settings.cors_origins)
    limit_rates(app, services.settings)
    app.register_blueprint(openai_api, url_prefix="/v1")
    # Open WebUI and others ask without the prefix.
    app.register_blueprint(openai_api, name="openai_bare")
    app.register_blueprint(asr_api)
    app.register_blueprint(job_api, url_prefix="/v1")
    app.register_blueprint(admin_api)
    app.register_blueprint(pages)
    app.register_blueprint(docs)
    app.register_error_handler(Exception, answer_error)
    app.wsgi_app = SpellingOfPaths(app.wsgi_app)  # type: ignore[method-assign]
    if services.settings.trusted_proxy:
        app.wsgi_app = TrustedProxies(  # type: ignore[method-assign]
            app.wsgi_app, trusted=services.settings.trusted_proxy
        )
    return app
