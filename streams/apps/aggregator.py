"""The aggregator."""

from streams.aggregator import make_aggregator
from streams.app import serve

service = make_aggregator()
app = service.app

if __name__ == "__main__":
    serve(service)
