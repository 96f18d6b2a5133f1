"""The sequencer."""

from streams.app import serve
from streams.sequencer import make_sequencer

service = make_sequencer()
app = service.app

if __name__ == "__main__":
    serve(service)
