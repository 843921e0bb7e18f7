"""The silo's Flower app: ``client.app:app``.

Handlers read a request and hand the work to :class:`client.silo.Silo`; only :func:`client.release.answer` builds replies.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.release import answer
from client.silo import Place, Silo, open_silo
from client.wire import read_adapter_request, read_request
from common.protocol import read_run_config

app = ClientApp()


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Which silo is this?"""
    return answer(message, lambda: _silo(context).enrol(read_request(message)))


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """How often was each item met? Protected; asked once, before the first round."""
    return answer(message, lambda: _silo(context).count(read_request(message)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """How does the adapter change when it is trained on the silo's users? Protected."""
    return answer(message, lambda: _silo(context).train(read_adapter_request(message)))


@app.query("metrics")
def metrics(message: Message, context: Context) -> Message:
    """How good is the adapter on what the silo held out? Protected; asked once, after the last round."""
    return answer(message, lambda: _silo(context).metrics(read_adapter_request(message)))


def _silo(context: Context) -> Silo:
    config, app_settings = read_run_config(context.run_config)
    return open_silo(config, Place.of(context.node_config, app_settings.get("out")))
