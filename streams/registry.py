"""The registry decider's Faust app."""

from protocol.registry import DECIDER
from streams.app import make_service, serve
from streams.deciding import run_decider

service = make_service("registry", "DECIDER")
app = service.app
run_decider(service, DECIDER)

if __name__ == "__main__":
    serve(service)
