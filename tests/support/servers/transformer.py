"""A transformer: preprocesses, and asks the predictor at --predictor_host."""

import argparse
import os

if os.environ["TEST_WAY"] == "bare":
    from kserve import ModelServer as Server
else:
    from kserve_ext import GracefulModelServer as Server

from kserve import Model, model_server

try:
    from kserve.model import PredictorConfig
except ImportError:
    from kserve import PredictorConfig

parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()


class Transformer(Model):
    def __init__(self):
        super().__init__("m", PredictorConfig(args.predictor_host, args.predictor_protocol))
        self.ready = True


if __name__ == "__main__":
    Server(http_port=args.http_port, grpc_port=args.grpc_port).start([Transformer()])
