"""The silo's Flower app: ``client.app:app``.

Handlers read a request and hand the work to :class:`client.silo.Silo`; only :func:`client.release.answer` builds replies.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.place import Place
from client.release import answer
from client.silo import Silo, open_silo
from client.wire import read_adapter_request, read_request, read_sum_request
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


@app.query("budget")
def budget(message: Message, context: Context) -> Message:
    """How much of the silo's budget is left? Told only where its operator shows it; it follows from what was released."""
    return answer(message, lambda: _silo(context).budget(read_request(message)))


@app.query("advertise")
def advertise(message: Message, context: Context) -> Message:
    """With which keys does the silo take part in a secure sum?"""
    return answer(message, lambda: _silo(context).advertise(read_sum_request(message)))


@app.query("share")
def share(message: Message, context: Context) -> Message:
    """Shares of the secrets behind the silo's masks, sealed for the other silos."""
    return answer(message, lambda: _silo(context).share(read_sum_request(message)))


@app.query("mask")
def mask(message: Message, context: Context) -> Message:
    """What would the silo answer? Protected, and under masks that only come off the sum."""
    return answer(message, lambda: _silo(context).mask(read_sum_request(message)))


@app.query("sign")
def sign(message: Message, context: Context) -> Message:
    """Are these the silos in the sum?"""
    return answer(message, lambda: _silo(context).sign(read_sum_request(message)))


@app.query("reveal")
def reveal(message: Message, context: Context) -> Message:
    """One share of each silo's secrets, so that the masks come off the sum."""
    return answer(message, lambda: _silo(context).reveal(read_sum_request(message)))


def _silo(context: Context) -> Silo:
    config, app_settings = read_run_config(context.run_config)
    return open_silo(config, Place.of(context.node_config, app_settings.get("out")))
