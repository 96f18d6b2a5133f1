"""The registry decider."""

from streams.app import serve
from streams.deciding import make_decider

service = make_decider("registry")
app = service.app

if __name__ == "__main__":
    serve(service)
