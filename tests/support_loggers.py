"""Loggers of a user's own, which write down what they are given."""


class Writer:
    """Appends to a list that the test holds."""

    made: list["Writer"] = []  # noqa: RUF012

    def __init__(self, experiment, fails_at=None, broken=False):
        if broken:
            raise ValueError("no\nsuch project")
        self.experiment, self.fails_at = experiment, fails_at
        self.points, self.closed = [], False
        self.made.append(self)

    def log(self, group, step, values):
        if step == self.fails_at:
            raise ConnectionError("gone")
        self.points.append((group, step, values))

    def close(self):
        self.closed = True
