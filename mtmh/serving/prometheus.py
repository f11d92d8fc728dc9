"""Metrics of the service, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mtmh.adaptive.chooser import AlphaChooser

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ServiceMetrics:
    """The metrics of one service, in a registry of their own.

    Attributes:
        requests: finished requests by route and status.
        seconds: time of a request, from its first byte to the last of the answer.
        stages: time of each stage of a retrieval; ``queue`` is the wait for a thread, a batch counts once.
        queue_depth: requests that wait for a thread.
        running: requests that a thread works on.
        loop_lag: delay of the event loop.
        batch_requests: requests that were searched as one batch.
        rejected: requests that were turned away, by reason.
        cache: look-ups of the answer cache, by result.
        index_info: 1 for the index version that answers now.
        index_items: items of that version.
        index_swaps: versions taken into use since the start, additions and removals of items included.
        index_refused: versions that were not fit for use.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mtmh_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"mtmh_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"mtmh_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter("requests", "Finished requests.", "route", "status")
        self.seconds = histogram("request_seconds", "Time of a request.", "route")
        self.stages = histogram("stage_seconds", "Time of a stage of retrieval.", "stage")
        self.queue_depth = gauge("queue_depth", "Requests that wait for a thread.")
        self.running = gauge("running_requests", "Requests that a thread works on.")
        self.loop_lag = gauge("event_loop_lag_seconds", "Delay of the event loop.")
        self.batch_requests = histogram(
            "batch_requests", "Requests searched as one batch.", buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.rejected = counter("rejected", "Requests turned away.", "reason")
        self.cache = counter("cache_lookups", "Look-ups of the answer cache.", "result")
        self.index_info = gauge("index_info", "1 for the index version that answers.", "version")
        self.index_items = gauge("index_items", "Items of the index.")
        self.index_swaps = counter("index_swaps", "Index versions and item changes taken into use.")
        self.index_refused = counter("index_refused", "Index versions that were refused.")
        for reason in ("overloaded", "queue_full", "deadline", "body_too_large", "slow_body"):
            self.rejected.labels(reason)
        for result in ("hit", "miss"):
            self.cache.labels(result)


class AlphaMetrics(Collector):
    """What feedback has taught about alpha, read when metrics are asked for.

    Args:
        chooser: that learns.
    """

    def __init__(self, chooser: AlphaChooser) -> None:
        self._chooser = chooser

    def describe(self) -> list[Metric]:
        """Nothing: names are known from `collect` alone."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        found = self._chooser.summary()
        choices = CounterMetricFamily("mtmh_alpha_choices", "Requests whose alpha was chosen.", labels=["alpha"])
        for alpha, count in zip(found.alphas, found.chosen, strict=True):
            choices.add_metric([f"{alpha:g}"], count)
        yield choices
        yield GaugeMetricFamily("mtmh_feedback_rewards", "Feedback that counts.", value=found.num_feedback)
        if found.reward is None:
            return
        yield GaugeMetricFamily("mtmh_feedback_mean_reward", "Mean share of engaged items.", value=found.reward)
        labels = ["alpha", "estimator"]
        value = GaugeMetricFamily("mtmh_alpha_reward", "Estimated reward of one alpha for all.", labels=labels)
        error = GaugeMetricFamily("mtmh_alpha_reward_error", "Standard error of that estimate.", labels=labels)
        for alpha, by_estimator in zip(found.alphas, found.values, strict=True):
            for estimator, estimate in by_estimator.items():
                value.add_metric([f"{alpha:g}", estimator], estimate.value)
                error.add_metric([f"{alpha:g}", estimator], estimate.standard_error)
        yield value
        yield error
