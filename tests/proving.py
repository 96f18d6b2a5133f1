"""One proof of a norm, checked alone."""

from protocol.modes.mpc.norm_proof import verify_norm_proofs


def verify_norm_proof(statement, proof):
    """Raise what is wrong with a proof, if anything is."""
    (error,) = verify_norm_proofs([(statement, proof)])
    if error is not None:
        raise error
