"""A Kafka that starts again is looked at as before."""

from pathlib import Path

from adapters.kafka import KafkaUnavailableError, create_topics, make_admin
from adapters.topic_watch import Place, find_ends
from cli.stack import backends
from schemas import topics
from tests.integration.harness import wait_until
from tests.integration.other_kafka import ImpatientKafka


def test_the_ends_of_partitions_are_found_again(tmp_path: Path) -> None:
    """The client remembers which leader a partition had."""
    with ImpatientKafka(tmp_path) as kafka:
        create_topics(kafka.settings)
        admin, place = make_admin(kafka.settings), Place(topics.LEDGER, 0)

        def look() -> object:
            try:
                return find_ends(admin, [place])
            except KafkaUnavailableError:
                return None

        wait_until(look, "the topics have leaders")
        kafka.kill(backends.KAFKA)
        kafka.start_service(backends.KAFKA)
        wait_until(look, "Kafka says again where its partitions end")
