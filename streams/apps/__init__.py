"""Services as `faust -A` names them; only these modules start something on import."""
