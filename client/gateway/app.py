"""The gateway's HTTP interface, and its page."""

from __future__ import annotations

import asyncio
import hmac
import html
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from client.gateway import metrics as counting
from client.gateway.desk import Desk
from client.gateway.guard import Guard
from client.gateway.models import (
    Alive,
    Answer,
    Batch,
    BatchAnswer,
    BundleAnswer,
    CardAnswer,
    Changed,
    Found,
    Nothing,
    Problem,
    Question,
    Ready,
    Search,
    SearchQuery,
)
from client.gateway.pool import Pool
from client.gateway.problems import CONTENT_TYPE, Refused, refused_fields
from common.errors import ServingError, SilorecError
from common.serving import Live

PAGE: Final = Path(__file__).with_name("page")
MEDIA_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
DIGEST_HEADER: Final = "Silorec-Bundle"

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in (400, 408, 413, 415, 421, 422, 500, 503)
}
_bearer = HTTPBearer(auto_error=False, description="the administrator's token, from the file of --admin-token-file")


@dataclass(frozen=True)
class Settings:
    """How the gateway behaves towards those who ask.

    Parameters
    ----------
    title:
        Of the page.
    hosts:
        Names, without ports, under which it may be asked; anything else in a request's Host is refused.
    threads, waiting:
        Requests computed at once, and further ones that may wait.
    admin_token:
        Whoever has it may roll back and reload; None: nobody may, over HTTP. Requests from the same machine are no exception:
        behind a proxy all come from there, and so do those of any page that a browser on it shows.
    """

    title: str = "Recommendations"
    hosts: Collection[str] = LOOPBACK
    threads: int = 2
    waiting: int = 64
    admin_token: str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or self.waiting < 0:
            raise ServingError(f"threads = {self.threads}, waiting = {self.waiting}: one thread at least, and no negative queue")
        if self.admin_token is not None and len(self.admin_token) < 16:
            raise ServingError("the administrator's token is shorter than 16 characters; make a longer one")


def create_app(live: Live, settings: Settings | None = None) -> FastAPI:
    """The ASGI app that answers from ``live``, which must have been opened with ``prepare=Desk``."""
    settings = settings or Settings()
    pool = Pool(settings.threads, settings.waiting)
    metrics = counting.Metrics(live, lambda: pool.taken)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.close()

    app = FastAPI(
        title="silorec gateway",
        version="1",
        description="Recommendations, ranked in the silo. A request holds a history and nothing of whose it is.",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.add_middleware(Guard, hosts=settings.hosts, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Refused, _on_refused)

    async def answered(work: Callable[[Desk], BaseModel]) -> Response:
        """``work`` done by one desk from beginning to end, beside the event loop."""

        def working() -> tuple[str, bytes]:
            desk: Desk = live.current.prepared
            return desk.digest, work(desk).model_dump_json().encode()

        digest, body = await pool.run(working)
        return Response(body, media_type="application/json", headers={DIGEST_HEADER: digest})

    _add_questions(app, answered, live)
    _add_administration(app, live, settings.admin_token)
    _add_operation(app, live, metrics)
    _add_page(app, settings.title)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


Answered = Callable[[Callable[[Desk], BaseModel]], Any]
NoQuery = Annotated[Nothing, Query()]


def _add_questions(app: FastAPI, answered: Answered, live: Live) -> None:
    @app.post("/v1/recommend", response_model=Answer, responses=_PROBLEMS, tags=["questions"])
    async def recommend(question: Question, _: NoQuery) -> Response:
        """Items for a history, best first. An empty history gives what is popular."""
        return await answered(lambda desk: desk.recommend(question))

    @app.post("/v1/recommend/batch", response_model=BatchAnswer, responses=_PROBLEMS, tags=["questions"])
    async def recommend_batch(batch: Batch, _: NoQuery) -> Response:
        """Several questions, answered by one bundle, the model being run once for all."""
        return await answered(lambda desk: BatchAnswer(bundle=desk.digest, answers=desk.recommend_many(batch.requests)))

    @app.get("/v1/items", response_model=Found, responses=_PROBLEMS, tags=["questions"])
    async def items(search: Annotated[SearchQuery, Query()]) -> Response:
        """Items by title or id. Proxies log addresses: where people type, use POST /v1/items/search."""
        return await answered(lambda desk: desk.search(search.q, search.limit))

    @app.post("/v1/items/search", response_model=Found, responses=_PROBLEMS, tags=["questions"])
    async def search_items(search: Search, _: NoQuery) -> Response:
        """As GET /v1/items, with the search in the body, where no log has it."""
        return await answered(lambda desk: desk.search(search.q, search.limit))

    @app.get("/v1/card", response_model=CardAnswer, responses=_PROBLEMS, tags=["the bundle"])
    async def card(_: NoQuery) -> Response:
        """The model card: data, privacy, quality."""
        return await answered(Desk.card)

    @app.get("/v1/bundle", response_model=BundleAnswer, responses=_PROBLEMS, tags=["the bundle"])
    async def bundle(_: NoQuery) -> Response:
        """Which bundle answers, who signed it, and how its items are searched."""
        return await answered(lambda desk: desk.facts(live.status))


def _add_administration(app: FastAPI, live: Live, token: str | None) -> None:
    def admitted(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if token is None:
            raise Refused(
                HTTPStatus.FORBIDDEN, "this gateway takes no administrator's requests; start it with --admin-token-file"
            )
        if given is None or not hmac.compare_digest(given.credentials.encode(errors="replace"), token.encode()):
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "an administrator's token is needed",
                headers={"WWW-Authenticate": 'Bearer realm="silorec"'},
            )

    responses = _PROBLEMS | {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in (401, 403, 409)}
    admin: dict[str, Any] = {
        "response_model": Changed, "responses": responses, "tags": ["administration"], "dependencies": [Depends(admitted)],
    }  # fmt: skip

    def changed(change: bool) -> Response:
        digest = live.status.digest
        body = Changed(bundle=digest, changed=change).model_dump_json()
        return Response(body, media_type="application/json", headers={DIGEST_HEADER: digest})

    @app.post("/v1/rollback", **admin)
    async def rollback(_: NoQuery) -> Response:
        """Go back to the last good bundle. What was left is not taken again until it is reloaded or replaced."""
        try:
            await asyncio.to_thread(live.rollback)
        except ServingError as error:
            raise Refused(HTTPStatus.CONFLICT, str(error), bundle=live.status.digest) from None
        return changed(True)

    @app.post("/v1/reload", **admin)
    async def reload(_: NoQuery) -> Response:
        """Take what lies at the watched path now, also if it was rolled back from."""
        try:
            return changed(await asyncio.to_thread(live.swap))
        except SilorecError as error:
            raise Refused(HTTPStatus.CONFLICT, str(error), bundle=live.status.digest) from None


def _add_operation(app: FastAPI, live: Live, metrics: counting.Metrics) -> None:
    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Alive:
        """The process lives."""
        return Alive()

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Ready:
        """A bundle answers."""
        return Ready(bundle=live.status.digest)

    @app.get("/metrics", tags=["operation"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """For Prometheus. Nothing in it comes from a request's text."""
        return Response(metrics.page(), media_type=counting.CONTENT_TYPE)


def _add_page(app: FastAPI, title: str) -> None:
    page = Template((PAGE / "index.html").read_text(encoding="utf-8")).substitute(title=html.escape(title))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    for path in sorted(PAGE.iterdir()):
        if path.suffix in MEDIA_TYPES:
            app.get(f"/{path.name}", include_in_schema=False)(_asset(path.read_bytes(), MEDIA_TYPES[path.suffix]))


def _asset(content: bytes, media_type: str) -> Callable[[], Any]:
    async def asset() -> Response:
        return Response(content, media_type=media_type)

    return asset


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_refused(_, refused_fields(error.errors()))


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    sentences = {
        HTTPStatus.NOT_FOUND: "there is nothing under this address; /openapi.json lists what there is",
        HTTPStatus.METHOD_NOT_ALLOWED: "this address is not asked by this method; /openapi.json says by which",
        HTTPStatus.BAD_REQUEST: "the body cannot be read as JSON",
    }
    return await _on_refused(_, Refused(status, sentences.get(status, status.phrase), headers=error.headers))


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return Response(error.body, error.problem.status, headers={"Content-Type": CONTENT_TYPE, **error.headers})


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with problems under their own content type and the digest's header."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    digest = {"description": "digest of the bundle that made the answer", "schema": {"type": "string"}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if not status.startswith("2") and "application/json" in content:
                    content[CONTENT_TYPE] = content.pop("application/json")
                if status == "200" and path.startswith("/v1/"):
                    response["headers"] = {DIGEST_HEADER: digest}
    app.openapi_schema = document
    return document
