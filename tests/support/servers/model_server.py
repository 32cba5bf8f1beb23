"""A model server as a user writes it, with what a test can observe: one JSON line per event.

--way bare | subclass | patch | run  (run: the patches come from `mlops-ext run`)
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import time

EVENTS = os.environ["TEST_EVENTS"]
WAY = os.environ.get("TEST_WAY", "bare")
LONG_S = 0.5  # requests from here on are told about; the short ones of a load are not


def tell(kind, **details):
    line = json.dumps({"at": time.monotonic(), "pid": os.getpid(), "kind": kind, **details}) + "\n"
    descriptor = os.open(EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


if __name__ == "__main__":
    tell("boot")

if WAY == "subclass":
    from kserve_ext import GracefulModelServer as Server
elif WAY == "patch":
    import mlops_ext

    mlops_ext.apply("kserve")
    from kserve import ModelServer as Server
else:
    from kserve import ModelServer as Server

from kserve import (  # noqa: E402
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelRepository,
    model_server,
)

parser = argparse.ArgumentParser(parents=[model_server.parser])
parser.add_argument("--sleep", type=float, default=0.05)
parser.add_argument("--cpu_ms", type=float, default=5.0)
parser.add_argument("--load_s", type=float, default=0.0)
parser.add_argument("--stop_s", type=float, default=0.0)
parser.add_argument("--more_models", type=int, default=0)
parser.add_argument("--in_thread", action="store_true")
args, _ = parser.parse_known_args()


class Base(Model):
    in_flight = 0

    def __init__(self, name):
        super().__init__(name)
        self.stopped = False
        self.loads = 0

    def load(self):
        tell("loading", model=self.name, in_flight=Base.in_flight)
        self.loads += 1  # what was loaded before is gone from here on
        end = time.monotonic() + args.load_s
        while time.monotonic() < end:
            time.sleep(0.01)
        self.ready = True
        return True

    def stop(self):
        tell("model stopped", model=self.name, in_flight=Base.in_flight)
        self.stopped = True
        time.sleep(args.stop_s)
        tell("model has stopped", model=self.name)

    def respond(self, payload, loads=1):
        number = 0 if self.stopped or loads != self.loads else 1
        if isinstance(payload, InferRequest):
            output = InferOutput(name="o", shape=[1], datatype="INT32", data=[number])
            return InferResponse(response_id="x", model_name=self.name, infer_outputs=[output])
        return {"predictions": [number]}


def number_of(payload):
    if isinstance(payload, InferRequest):
        return float(payload.inputs[0].data[0]) if payload.inputs else 0.0
    return float(payload["instances"][0])


def begin(payload, default):
    """How long a request is to take. That a long one has begun is told: tests wait for it."""
    seconds = number_of(payload) or default
    if seconds >= LONG_S:
        tell("begun")
    return seconds


class Sleeper(Base):
    async def predict(self, payload, headers=None):
        Base.in_flight += 1
        loads = self.loads
        try:
            await asyncio.sleep(begin(payload, args.sleep))
            return self.respond(payload, loads)
        except asyncio.CancelledError:
            tell("cancelled")
            raise
        finally:
            Base.in_flight -= 1


class Cpu(Base):
    def predict(self, payload, headers=None):
        Base.in_flight += 1
        try:
            end = time.perf_counter() + begin(payload, args.cpu_ms / 1000)
            while time.perf_counter() < end:
                pass
            return self.respond(payload)
        finally:
            Base.in_flight -= 1


class Reloading(ModelRepository):
    """Its ``load`` loads the same model again, as a user's does who replaces the weights."""

    def load(self, name):
        return self.models[name].load()


class Told(Server):
    """Tells that ``start`` has begun: from there on a signal is ours."""

    def register_model(self, *args, **kwargs):
        if not self.registered_models.get_models():
            tell("start")
        super().register_model(*args, **kwargs)


def main():
    models = [Sleeper("m"), Cpu("c"), *(Sleeper(f"m{n}") for n in range(args.more_models))]
    for model in models:
        model.load()
    server = Told(
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        workers=args.workers,
        registered_models=Reloading(),
    )
    if args.in_thread:
        thread = threading.Thread(target=server.start, args=(models,))
        thread.start()
        for line in sys.stdin:
            tell("asked", line=line.strip())
            server.shutdown()
            break
        thread.join()
    else:
        server.start(models)
    tell("returned", threads=[t.name for t in threading.enumerate()])


if __name__ == "__main__":
    main()
