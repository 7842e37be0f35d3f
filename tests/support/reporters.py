"""A reporter to look at afterwards."""

from __future__ import annotations


class Silent:
    """A reporter that remembers warnings and events."""

    def __init__(self):
        self.warnings, self.events = [], []

    def begin(self, title, card, iterations, start):
        self.events.append(("begin", start))

    def stage(self, name, done, total, note=""):
        self.events.append((name, done))

    def iteration(self, metrics):
        self.events.append(("iteration", metrics["iteration"]))

    def evaluation(self, record):
        self.events.append(("evaluation", record["iteration"]))

    def samples(self, samples):
        self.events.append(("samples", len(samples)))

    def warn(self, text):
        self.warnings.append(text)

    def end(self, summary):
        self.events.append(("end", summary["status"]))
