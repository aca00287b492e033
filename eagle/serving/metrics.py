"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from eagle.serving.engine import Engine, Piece

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server.

    Args:
        engine: whose queue is shown.

    Attributes:
        registry: of all of them.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        into = self.registry
        self.requests = Counter("eagle_requests", "Requests, by status", ["status"], registry=into)
        self.prompt_tokens = Counter("eagle_prompt_tokens", "Tokens of prompts", registry=into)
        self.remembered = Counter(
            "eagle_remembered_prompt_tokens", "Tokens of prompts that were not read again", registry=into
        )
        self.new_tokens = Counter("eagle_new_tokens", "Tokens of texts", registry=into)
        self.accepted = Counter("eagle_accepted_tokens", "Drafted tokens among them", registry=into)
        self.rounds = Counter("eagle_rounds", "Forwards of the target over a tree", registry=into)
        self.stages = Counter("eagle_stage_seconds", "Seconds of decoding, by stage", ["stage"], registry=into)
        self.first = Histogram(
            "eagle_first_token_seconds", "From a request to its first text", buckets=SECONDS, registry=into
        )
        self.whole = Histogram("eagle_request_seconds", "From a request to its end", buckets=SECONDS, registry=into)
        self.tau = Gauge("eagle_tau", "Tokens a round of all texts so far, the target's own included", registry=into)
        waiting = Gauge("eagle_queue", "Requests that wait", registry=into)
        waiting.set_function(lambda: float(engine.queued))
        self._tokens = self._of_rounds = 0

    def ended(self, piece: Piece) -> None:
        """Count a text that has ended with this piece."""
        usage = piece.usage
        self.new_tokens.inc(usage.new_tokens)
        self.accepted.inc(usage.accepted)
        self.remembered.inc(usage.remembered)
        self.rounds.inc(usage.rounds)
        for stage, seconds in piece.seconds.items():
            self.stages.labels(stage).inc(seconds)
        self._tokens, self._of_rounds = self._tokens + usage.accepted, self._of_rounds + usage.rounds
        if self._of_rounds:
            self.tau.set(1 + self._tokens / self._of_rounds)
