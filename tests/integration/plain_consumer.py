"""Read every record of Folkmoot's topics with nothing of Folkmoot installed.

Usage: plain_consumer.py BOOTSTRAP_SERVERS REGISTRY_URL FEDERATION TOPIC...
Prints one JSON object per record: topic, offset, federation and traceparent.
"""

import json
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

bootstrap_servers, registry_url, federation, *topics = sys.argv[1:]
deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry_url}))
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap_servers,
        "group.id": "plain",
        "enable.partition.eof": True,
        "enable.auto.commit": False,
    }
)
consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in topics])
unfinished = set(topics)
while unfinished:
    message = consumer.poll(30)
    assert message is not None, "Kafka is silent"
    topic = message.topic()
    if message.error():  # the end of a partition
        unfinished.discard(topic)
    elif message.key() == federation.encode():
        context = SerializationContext(topic, MessageField.VALUE)
        event = deserialize(message.value(), context)
        print(
            json.dumps(
                {
                    "topic": topic,
                    "offset": message.offset(),
                    "federation": event["federation_id"],
                    "fields": sorted(event),
                    "headers": [name for name, _ in message.headers() or []],
                }
            )
        )
consumer.close()
