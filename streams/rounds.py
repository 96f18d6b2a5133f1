"""The rounds decider's Faust app."""

from protocol.deciders import DECIDERS
from streams.app import make_service, serve
from streams.deciding import run_decider

service = make_service("rounds", "DECIDER")
app = service.app
run_decider(service, DECIDERS["rounds"])

if __name__ == "__main__":
    serve(service)
