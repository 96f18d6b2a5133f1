"""Services as `faust -A` names them: what alone starts something when imported."""
