"""Nodes that break one rule each: any check of nodes must notice."""

from __future__ import annotations

from ledger.attestations import order
from ledger.consensus import Consensus
from schemas import events as e


class WithoutR1(Consensus):
    """Attests a child of what it attested itself, certified or not."""

    def _find_parent(self):
        parent = super()._find_parent()
        height, block_id = self.votes.attested
        if height > parent.height:
            return e.QuorumCertificate(
                era=0,
                epoch=self.epoch,
                height=height,
                block_id=block_id,
                signatures=(),
            )
        return parent


class WithoutR2(Consensus):
    """Attests every block that it reads."""

    def _may_attest(self, height):
        return self._may_sign() and self.votes.requested_epoch == self.epoch

    def _choose(self, parent):
        self.done = getattr(self, "done", set())
        for child in self._children.get(parent.block_id, []):
            if (self.epoch, child.id) not in self.done:
                self.done.add((self.epoch, child.id))
                return child
        return None


class WithoutR3(Consensus):
    """Goes on attesting in the epoch that it gave up."""

    def _may_attest(self, height):
        return self._may_sign() and height > self.votes.attested[0]


class WithoutR4(Consensus):
    """Takes the lowest certificate as the base."""

    def _choose_base(self, requests):
        return min((request.high for request in requests), key=order)


class WithoutBranch(Consensus):
    """Attests what does not descend from its base (R4's second half)."""

    def _find_parent(self):
        return max(
            (c for c in self._certificates.values() if c.epoch == self.epoch),
            key=order,
            default=self.votes.base,
        )
