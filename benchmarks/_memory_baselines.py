"""Published ways to allocate memory, as far as they can be had from their sources."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from _memory_traces import NODE

GIB = 1024**3
MIB = 1024**2


class Baseline:
    """Keeps what it was told; asks for the author's value until then; doubles after a kill."""

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self.peaks: list[float] = []
        self.hours: list[float] = []

    def add(self, size: float, peak: float, hours: float) -> None:
        self.sizes.append(size if math.isfinite(size) else 0.0)
        self.peaks.append(peak)
        self.hours.append(hours)

    def first(self, size: float, request: float) -> float:
        return self.guess(size if math.isfinite(size) else 0.0) if self.peaks else request

    def kill(self, size: float, limit: float) -> None:
        """Nothing: none of these looks at runs that were killed."""

    def guess(self, size: float) -> float:
        raise NotImplementedError

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del kills, size, request
        return 2 * allocated


class Author(Baseline):
    """What the workflow's author asks for; nf-core retries with ``memory * task.attempt``.

    Source: nf-core template, conf/base.config (``check_max( 6.GB * task.attempt )``).
    """

    def first(self, size: float, request: float) -> float:
        del size
        return request

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del allocated, size
        return request * (kills + 1)


class Doubling(Baseline):
    """1 GB, doubled after each kill: exponential search without knowledge.

    Source: HTCondor manual, ``retry_request_memory_increase``; the usual factor is 2.
    """

    def first(self, size: float, request: float) -> float:
        del size, request
        return 1e9


class MaxSeen(Baseline):
    """The largest peak so far. Source: Tovar et al., below, section on "max seen"."""

    def guess(self, size: float) -> float:
        del size
        return max(self.peaks)


class Vpa(Baseline):
    """Kubernetes' Vertical Pod Autoscaler: a percentile of the peaks with 15 % safety margin.

    Source: kubernetes/autoscaler, vertical-pod-autoscaler/pkg/recommender: logic/recommender.go
    (safety margin 0.15, target percentile 0.9) and model/cluster (OOM bump: the larger of 1.2
    times and 100 MiB more). Its histogram buckets, decay and 250 MiB floor are left out.
    """

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def guess(self, size: float) -> float:
        del size
        return float(np.percentile(self.peaks, self.percentile)) * 1.15

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del kills, size, request
        return max(1.2 * allocated, allocated + 100 * MIB)


class Tovar(Baseline):
    """First allocation of least expected waste, then the maximum seen, then *beyond*.

    Source: Tovar et al., "A Job Sizing Strategy for High-Throughput Scientific Workflows", IEEE
    TPDS 29(2), 2018 (PPM). The paper goes on with the whole node ("max"); the KS+ paper (Bader
    et al., 2024) doubles instead.
    """

    def __init__(self, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles

    def guess(self, size: float) -> float:
        del size
        order = np.argsort(self.peaks)
        peaks, hours = np.array(self.peaks)[order], np.array(self.hours)[order]
        later = hours.sum() - np.cumsum(hours)
        cost = peaks * hours.sum() + peaks[-1] * later
        is_last = np.append(peaks[1:] != peaks[:-1], True)
        return float(peaks[int(np.argmin(np.where(is_last, cost, np.inf)))])

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del kills, size
        largest = max(self.peaks, default=request)
        if allocated < largest:
            return largest
        return 2 * allocated if self.doubles else NODE


class WittPercentile(Baseline):
    """The 95th percentile of the peaks, doubled after a kill.

    Source: Witt, Wagner, Leser, "Feedback-Based Resource Allocation for Batch Scheduling of
    Scientific Workflows", HPCS 2019.
    """

    def guess(self, size: float) -> float:
        del size
        return float(np.percentile(self.peaks, 95))


class WittRegression(Baseline):
    """A line over the input size, times 1 plus the spread of its relative errors so far.

    Source: Witt et al., as above (LR with offset), in the form that Sizey's authors compare
    with: the offset is the standard deviation of the relative errors of earlier predictions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[float] = []
        self._sums = np.zeros(5)

    def guess(self, size: float) -> float:
        offset = float(np.std(self.errors)) if self.errors else 0.0
        return self._line(size) * (1 + offset)

    def _line(self, size: float) -> float:
        n, x, y, xx, xy = self._sums
        variance = xx / n - (x / n) ** 2
        if n < 2 or variance <= 1e-12 * max(xx / n, 1e-300):
            return float(y / n)
        slope = (xy / n - x * y / n**2) / variance
        return float(y / n + slope * (size - x / n))

    def add(self, size: float, peak: float, hours: float) -> None:
        size = size if math.isfinite(size) else 0.0
        if self.peaks:
            self.errors.append((peak - self._line(size)) / peak)
        self._sums += (1.0, size, peak, size * size, size * peak)
        super().add(size, peak, hours)


class Ponder(Baseline):
    """A line by asymmetric loss where input and peak correlate, else the maximum, plus an offset.

    Source: Lehmann et al., "Ponder: Online Prediction of Task Memory Requirements for
    Scientific Workflows", IEEE e-Science 2024, and its code in CommonWorkflowScheduler/
    KubernetesScheduler (PonderPredictor): loss weight 0.02 above, r > 0.3, offset 128 MiB or two
    weighted standard deviations, the author's value as ceiling. Here the loss is minimised by
    reweighted least squares; it is convex, so the optimum is that of the simplex search there.
    """

    OFFSET = 128 * MIB
    LEAST = 256 * MIB

    def first(self, size: float, request: float) -> float:
        size = size if math.isfinite(size) else 0.0
        if len(self.peaks) < 5:
            if any(other > size for other in self.sizes):
                return min(max(self.peaks) + self.OFFSET, request)
            return request
        sizes, peaks = np.array(self.sizes), np.array(self.peaks)
        largest = float(peaks.max())
        related = sizes.std() > 0 and peaks.std() > 0
        if not related or not np.corrcoef(sizes, peaks)[0, 1] > 0.3:
            return max(min(largest + self.OFFSET, request), self.LEAST)
        beta = self._fit(sizes, peaks)
        guess = float(beta[0] + beta[1] * size / GIB) * GIB
        if guess < peaks.min():
            guess = float(peaks.min())
        elif (guess > largest and size < sizes.max()) or (size >= sizes.max() and guess < largest):
            guess = largest
        errors = peaks - (beta[0] + beta[1] * sizes / GIB) * GIB
        offset = max(self.OFFSET, 2 * self._deviation(errors, np.abs(sizes - size)))
        return max(min(guess + offset, request), self.LEAST)

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del size
        return request * kills if request * kills > allocated else request * (kills + 1)

    _fitted: tuple[int, Any] = (0, None)

    def _fit(self, sizes: Any, peaks: Any) -> Any:
        if self._fitted[0] == len(sizes):
            return self._fitted[1]
        x, y = sizes / GIB, peaks / GIB
        columns = np.stack([np.ones_like(x), x], axis=1)
        beta = np.linalg.lstsq(columns, y, rcond=None)[0]
        for _ in range(60):
            root = np.sqrt(np.where(y > columns @ beta, 1.0, 0.02))
            following = np.linalg.lstsq(columns * root[:, None], y * root, rcond=None)[0]
            done = np.allclose(following, beta, rtol=1e-7)
            beta = following
            if done:
                break
        self._fitted = (len(sizes), beta)
        return beta

    @staticmethod
    def _deviation(errors: Any, distance: Any) -> float:
        count, farthest = len(errors), distance.max()
        weights = np.ones(count)
        if farthest > 0:
            weights = 1 - distance / farthest + max(1 - count / 10, 0) / 100
        total, squares = weights.sum(), (weights * weights).sum()
        mean = (weights * errors).sum() / total
        variance = (weights * (errors - mean) ** 2).sum() / max(total - squares / total, 1e-9)
        return math.sqrt(max(float(variance), 0.0))


class Bucketing(Baseline):
    """Past peaks in buckets: one is drawn by its share, after a kill one above it, then doubling.

    A bucket stands for its largest peak. Later runs count more: the n-th run weighs n.
    Source: Phung, Ward, Chard, Thain, "Not All Tasks Are Created Equal: Adaptive Resource
    Allocation for Heterogeneous Tasks in Dynamic Workflows", WORKS 2021; Phung, Thain,
    "Adaptive Task-Oriented Resource Allocation for Large Dynamic Workflows on Opportunistic
    Resources", IPDPS 2024; as in TaskVine (cctools, dttools/src/bucketing_greedy.c and
    bucketing_exhaust.c).
    """

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(0)
        self._made: tuple[int, Any] = (0, None)

    def ends(self, peaks: Any, weights: Any) -> Any:
        """The index after each bucket's last peak, the peaks being sorted."""
        raise NotImplementedError

    def guess(self, size: float) -> float:
        del size
        return self._draw(0.0) or max(self.peaks)

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del kills, size, request
        return self._draw(allocated) or 2 * allocated

    def _draw(self, above: float) -> float | None:
        if self._made[0] != len(self.peaks):
            order = np.argsort(self.peaks, kind="stable")
            peaks, weights = np.array(self.peaks)[order], order + 1.0
            ends = self.ends(peaks, weights)
            share = np.diff(np.cumsum(weights)[ends - 1], prepend=0.0)
            self._made = (len(self.peaks), (peaks[ends - 1].tolist(), share.tolist()))
        values, shares = self._made[1]
        open_ = [(v, s) for v, s in zip(values, shares, strict=True) if v > above]
        if not open_:
            return None
        return float(self._rng.choices([v for v, _ in open_], [s for _, s in open_])[0])


class GreedyBucketing(Bucketing):
    """A bucket is cut in two where that is expected to waste least, and its halves again."""

    def ends(self, peaks: Any, weights: Any) -> Any:
        found, open_ = [len(peaks)], [(0, len(peaks))]
        while open_:
            low, high = open_.pop()
            mass = np.cumsum(weights[low:high])
            share = mass / mass[-1]
            moment = np.cumsum(weights[low:high] * peaks[low:high])
            mean, rest = moment / mass, 1.0 - share
            upper = (moment[-1] - moment) / np.maximum(mass[-1] - mass, 1e-300)
            at, top = peaks[low:high], peaks[high - 1]
            cost = (
                share * share * (at - mean)
                + share * rest * (top - mean)
                + rest * share * (at + top - upper)
                + rest * rest * (top - upper)
            )
            cut = low + len(cost) - int(np.argmin(cost[::-1]))  # the last of equally good ones
            if cut < high:
                found.append(cut)
                open_ += [each for each in ((low, cut), (cut, high)) if each[1] - each[0] > 1]
        return np.array(sorted(found))


class ExhaustiveBucketing(Bucketing):
    """Evenly wide buckets, up to ten: as many as are expected to waste least.

    Below the first of them they grow by powers of two, as TaskVine has it, in MB.
    """

    def ends(self, peaks: Any, weights: Any) -> Any:
        ways = [self._spaced(peaks, count) for count in range(1, 11)]
        return min(ways, key=lambda ends: self._cost(peaks, weights, ends))

    @staticmethod
    def _spaced(peaks: Any, count: int) -> Any:
        top = float(peaks[-1])
        steps = max(int(math.log2(max(top / 1e6 / count, 1.0))), 0)
        tops = [1e6 * 2**k for k in range(steps)] + [top * k / count for k in range(1, count)]
        ends = np.searchsorted(peaks, tops, side="right")
        return np.unique(np.append(ends[ends > 0], len(peaks)))

    @staticmethod
    def _cost(peaks: Any, weights: Any, ends: Any) -> float:
        mass = np.diff(np.cumsum(weights)[ends - 1], prepend=0.0)
        share = mass / mass.sum()
        mean = np.diff(np.cumsum(weights * peaks)[ends - 1], prepend=0.0) / mass
        tops, count = peaks[ends - 1], len(ends)
        table = np.zeros((count, count))  # of a task in bucket i that is given bucket j
        for j in range(count - 1, -1, -1):
            table[: j + 1, j] = tops[j] - mean[: j + 1]
            if j + 1 < count:
                onward = share[j + 1 :] / share[j + 1 :].sum()
                table[j + 1 :, j] = tops[j] + table[j + 1 :, j + 1 :] @ onward
        return float(share @ table @ share)


BASELINES = {
    "author": Author,
    "doubling from 1 GB": Doubling,
    "max seen": MaxSeen,
    "VPA p90": lambda: Vpa(90),
    "VPA p95": lambda: Vpa(95),
    "Tovar, max": lambda: Tovar(doubles=False),
    "Tovar, doubling": lambda: Tovar(doubles=True),
    "Witt, percentile": WittPercentile,
    "Witt, regression": WittRegression,
    "Ponder": Ponder,
    "greedy bucketing": GreedyBucketing,
    "exhaustive bucketing": ExhaustiveBucketing,
}
