"""The rewards decider's Faust app."""

from protocol.rewards import DECIDER
from streams.app import make_service, serve
from streams.deciding import run_decider

service = make_service("rewards", "DECIDER")
app = service.app
run_decider(service, DECIDER)

if __name__ == "__main__":
    serve(service)
