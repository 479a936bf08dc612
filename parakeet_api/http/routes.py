"""The WSGI application: every blueprint, mounted."""

from __future__ import annotations

from pathlib import Path

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from parakeet_api.http.admin_routes import admin_api
from parakeet_api.http.asr_routes import asr_api
from parakeet_api.http.cross_origin import allow_origins
from parakeet_api.http.docs_routes import docs
from parakeet_api.http.error_answers import answer_error
from parakeet_api.http.job_events import job_events_api
from parakeet_api.http.job_routes import job_api
from parakeet_api.http.openai_routes import openai_api
from parakeet_api.http.pages import pages
from parakeet_api.http.proxies import TrustedProxies
from parakeet_api.http.rate_limits import limit_rates
from parakeet_api.http.realtime_routes import realtime_api
from parakeet_api.http.received_form import MULTIPART_OVERHEAD, discard_form
from parakeet_api.http.request_log import begin_request, finish_request
from parakeet_api.http.services import Services
from parakeet_api.http.url_spellings import SpellingOfPaths


def create_app(services: Services, *, root: Path) -> Flask:
    """Build the WSGI application; `root` holds `templates/` and `static/`."""
    app = Flask(
        "parakeet_api", template_folder=str(root / "templates"), static_folder=str(root / "static")
    )
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_upload_bytes + MULTIPART_OVERHEAD
    assert isinstance(app.json, DefaultJSONProvider)
    app.json.ensure_ascii = False
    # Keys in the order of the code, most important first, not of the alphabet.
    app.json.sort_keys = False
    # A model's name may hold slashes, doubled ones too; a redirect would have another error shape.
    app.url_map.merge_slashes = False
    app.extensions["services"] = services
    app.before_request(begin_request)
    app.after_request(finish_request)
    app.teardown_request(discard_form)
    if services.settings.cors_origins:
        allow_origins(app, services.settings.cors_origins)
    limit_rates(app, services.settings)
    app.register_blueprint(openai_api, url_prefix="/v1")
    # Open WebUI and others send requests without the prefix.
    app.register_blueprint(openai_api, name="openai_bare")
    app.register_blueprint(realtime_api, url_prefix="/v1")
    app.register_blueprint(realtime_api, name="realtime_bare")
    app.register_blueprint(asr_api)
    app.register_blueprint(job_api, url_prefix="/v1")
    app.register_blueprint(job_events_api, url_prefix="/v1")
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
