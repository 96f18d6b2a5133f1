"""Where events are born: agents, the timer, the operator."""
