"""Use of trained networks: loading with everything that belongs to them, and predictions for photographs."""

from jaxkd.inference.exported import ExportedNetwork
from jaxkd.inference.loading import load
from jaxkd.inference.prediction import predict
from jaxkd.inference.preprocessing import Preprocessing
