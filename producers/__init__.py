"""Where events originate: agents, the timer, the operator."""
