"""The LPS's end of an exchange: its update is sent to the GPS, and the model that answers is merged."""

from typing import Literal

from lps.exchange import Exchanges
from lps.machine_settings import LpsSettings
from lps.model import RegionModel
from pelago.core.dedupe import Outcome
from pelago.core.durable import durable
from pelago.core.names import BlobId, PushId
from pelago.core.notes.lps import ExchangeAnswered, ExchangeBegun, GlobalMerged
from pelago.core.tensor_effects import Apply, Release
from pelago.protocol.client_session import ClientSession
from pelago.wire.messages import Effect, Model


@durable(settings=("_settings", "_session", "_model", "_exchanges"))
class ExchangeSession:
    """Keeps the record of exchanges, the upload and the region's model consistent."""

    def __init__(
        self,
        settings: LpsSettings,
        session: ClientSession,
        model: RegionModel,
        exchanges: Exchanges,
    ) -> None:
        self._settings = settings
        self._session = session
        self._model = model
        self._exchanges = exchanges

    def begin_if_due(self, now: int) -> list[Effect]:
        """Offer the movement since the last exchange, once there were updates enough."""
        version = self._model.version
        if not self._exchanges.due(version):
            return []
        blob = self._model.new_blob()
        push = self._exchanges.begin(self._session.fence, version)
        begun = ExchangeBegun(
            number=push.push.lease,
            fence=push.push.fence,
            updates=push.updates,
            version=version,
            spans=push.spans,
            dropped=push.dropped,
        )
        return [
            self._exchanges.difference(blob),
            begun,
            *self._session.offer(push, blob, now),
        ]

    def acknowledged(self, outcome: Outcome) -> list[Effect]:
        """The GPS decided the exchange under way."""
        exchange = self._exchanges.current
        assert exchange is not None
        is_known = exchange.state != "begun"
        self._exchanges.acknowledge(outcome)
        # The update itself has done its part; if its answer is lost, the same offer asks for it again.
        self._session.decided()
        return [] if is_known else [_answered(exchange.push, outcome)]

    def answered(self, message: Model, blob: BlobId, now: int) -> list[Effect]:
        """The global model that answers the exchange under way came: merge it."""
        exchange = self._exchanges.current
        assert exchange is not None
        answered = [] if exchange.state != "begun" else [_answered(exchange.push, "unknown")]
        effects: list[Effect] = [*answered, *self.release()]
        operation = self._exchanges.merge_operation()
        weight = 1.0 if operation == "load" else self._settings.merge_weight
        self._exchanges.merged(message.version, self._model.version)
        merged = GlobalMerged(message.version.counter, self._model.version)
        effects += [Apply(operation, blob, weight), Release(blob), merged]
        return [*effects, *self.begin_if_due(now)]

    def release(self) -> list[Effect]:
        """Forget the upload, if there is one."""
        upload = self._session.upload
        if upload is None:
            return []
        self._session.finished(upload.push)
        return [Release(upload.blob)]


def _answered(push: PushId, outcome: Outcome | Literal["unknown"]) -> ExchangeAnswered:
    """The note on a decided exchange. "unknown": the model that answers it came before its Ack."""
    return ExchangeAnswered(push.lease, push.fence, outcome)
