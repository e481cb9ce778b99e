"""The data plane: a worker process that answers inspections and Open Inference Protocol requests over HTTP."""
