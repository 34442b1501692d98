"""The "Gradients" tab as TensorBoard sees it: a name, a script, and routes below /data/plugin/lightning_calib/."""

import logging
from collections.abc import Callable
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend.http_util import Respond
from tensorboard.plugins.base_plugin import FrontendMetadata, TBPlugin
from werkzeug.wrappers import Request, Response

from lightning_calib.tensorboard import answers, lists
from lightning_calib.tensorboard.assets import asset
from lightning_calib.tensorboard.contract import PLUGIN
from lightning_calib.tensorboard.reading import Reader
from lightning_calib.tensorboard.refused import Refused
from lightning_calib.tensorboard.reports import Reports
from lightning_calib.tensorboard.run_folders import RunFolders
from lightning_calib.tensorboard.selection import Selection
from lightning_calib.tensorboard.unexpanded import screened

log: logging.Logger = logging.getLogger("lightning_calib")

Answer = Callable[[Request], tuple[Any, str]]
# For a browser that is sent to one of our addresses by itself; the tab's own page is TensorBoard's, with its policy.
POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
BYTES, JSON = "application/octet-stream", "application/json"
FRAMES = {"globals": answers.totals, "layers": answers.layers, "node": answers.node, "hist": answers.histograms}


class GradientsPlugin(TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """Serves what the callbacks wrote; holds nothing but the reports that were asked for, starts nothing.

    Args:
        context: TensorBoard's ``TBContext``; it must have a data provider.

    Raises:
        ValueError: If it has none.
    """

    plugin_name = PLUGIN

    def __init__(self, context: Any) -> None:
        if context.data_provider is None:
            raise ValueError("this TensorBoard reads without a data provider (--generic_data=false)")
        self._provider = context.data_provider
        self._folders, self._reports = RunFolders(getattr(context, "flags", None)), Reports()
        if screened(self._provider, lambda *_: True) is None:
            log.warning(
                "The Gradients tab cannot look at a record before %s expands it: open no event files of strangers, "
                "a small one can take up all memory",
                type(self._provider).__name__,
            )

    def is_active(self) -> bool:
        """Never by itself: TensorBoard shows the tab when it finds data of ours (see ``data_plugin_names``)."""
        return False

    def frontend_metadata(self) -> FrontendMetadata:
        """The tab's title and script."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="Gradients")

    def get_plugin_apps(self) -> dict[str, Any]:
        """The routes."""
        routes: dict[str, Answer] = {"/runs": self._runs, "/events": self._events, "/report": self._report}
        routes |= {"/index.js": _file, "/*": _file}
        routes |= {f"/{name}": self._frame(name) for name in FRAMES}
        return {route: _served(answer) for route, answer in routes.items()}

    def _reader(self, request: Request) -> Reader:
        environ = request.environ
        return Reader(self._provider, plugin_util.context(environ), plugin_util.experiment_id(environ))

    def _runs(self, request: Request) -> tuple[Any, str]:
        return lists.runs(self._reader(request)), JSON

    def _events(self, request: Request) -> tuple[Any, str]:
        return lists.events(Selection(self._reader(request), request.args)), JSON

    def _report(self, request: Request) -> tuple[Any, str]:
        run = request.args.get("run", "")
        self._reader(request).run(run)  # only what TensorBoard lists is looked for on the disk
        try:
            return self._reports.of(self._folders.files(run)), JSON
        except Refused as refusal:  # no row yet, or files that are not here: an answer, which the tab shows
            return {"run": run, "failed": str(refusal), "severity": "none", "findings": []}, JSON

    def _frame(self, name: str) -> Answer:
        def answer(request: Request) -> tuple[Any, str]:
            return FRAMES[name](Selection(self._reader(request), request.args)), BYTES

        return answer


def _file(request: Request) -> tuple[Any, str]:
    return asset(request.path.partition(f"/plugin/{PLUGIN}/")[2])


def _served(answer: Answer) -> Any:
    """A WSGI application that answers with a reason where it cannot answer with data."""

    @Request.application
    def serve(request: Request) -> Response:
        try:
            if request.method not in ("GET", "HEAD"):
                raise Refused(f"the method must be GET, got {request.method}", 405)
            content, kind = answer(request)
            response: Response = Respond(request, content, kind)
        except Refused as refusal:
            response = Respond(request, {"error": str(refusal)}, JSON, code=refusal.code)
        except Exception:
            log.exception("The Gradients tab could not answer %s", request.path)
            response = Respond(request, {"error": "no answer, TensorBoard's log says why"}, JSON, code=500)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return serve
