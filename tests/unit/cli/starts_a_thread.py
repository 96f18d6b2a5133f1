"""A module that no fork survives: importing it starts a thread."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
