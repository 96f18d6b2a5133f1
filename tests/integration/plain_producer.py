"""Take part in a round with nothing of Folkmoot installed.

Usage: plain_producer.py BOOTSTRAP_SERVERS REGISTRY_URL MINIO_ENDPOINT FEDERATION
    GENESIS AGENT
GENESIS is the genesis hash that the operator gave you, in hex.
MinIO's keys come in MINIO_ACCESS_KEY and MINIO_SECRET_KEY.
"""

import hashlib
import io
import json
import os
import sys

import fastavro
import numpy as np
import safetensors.numpy
from confluent_kafka import Consumer, Producer
from confluent_kafka.schema_registry import (
    SchemaRegistryClient,
    topic_record_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from minio import Minio
from nacl.signing import SigningKey

bootstrap_servers, registry_url, minio_endpoint, federation, genesis, agent = sys.argv[
    1:
]
registry = SchemaRegistryClient({"url": registry_url})
minio = Minio(
    minio_endpoint,
    os.environ["MINIO_ACCESS_KEY"],
    os.environ["MINIO_SECRET_KEY"],
    secure=False,
)
producer = Producer(
    # Java's partitioner: a federation's records must all be in one partition.
    {"bootstrap.servers": bootstrap_servers, "partitioner": "murmur2_random"}
)
key = SigningKey.generate()  # keep it: it is who this agent is


def publish(topic, event_name, event):
    """Serialise with the registered schema, sign, and send."""
    subject = f"{topic}-folkmoot.v1.{event_name}"
    schema = registry.get_latest_version(subject).schema.schema_str
    serialize = AvroSerializer(
        registry,
        schema,
        conf={
            "auto.register.schemas": False,
            "subject.name.strategy": topic_record_subject_name_strategy,
        },
    )
    value = serialize(event, SerializationContext(topic, MessageField.VALUE))
    # What is signed does not know any registry: C3 01, the schema's CRC-64-AVRO
    # fingerprint (little-endian), and the Avro body, which follows 5 bytes of framing.
    canonical = fastavro.schema.to_parsing_canonical_form(json.loads(schema))
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    event_bytes = b"\xc3\x01" + fingerprint + value[5:]
    # And the log that it is said in: it is good in no other.
    signed = b"folkmoot/event/v1\n" + bytes.fromhex(genesis) + event_bytes
    signature = key.sign(signed).signature
    producer.produce(
        topic, value, key=federation, headers={"moot-signature": signature}
    )
    assert producer.flush(30) == 0, "Kafka did not take it"


def facts():
    """Yield the facts about rounds, from the beginning on."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"plain-{agent}",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    deserialize = AvroDeserializer(registry)
    consumer.subscribe(["moot.rounds"])
    while True:
        message = consumer.poll(1)
        if message is None or message.error() or message.key() != federation.encode():
            continue
        context = SerializationContext("moot.rounds", MessageField.VALUE)
        yield deserialize(message.value(), context)


def store(blob):
    """Store a blob under its digest, and return its claim check."""
    digest = hashlib.sha256(blob)
    name = f"sha256/{digest.hexdigest()}"
    minio.put_object("moot", name, io.BytesIO(blob), len(blob))
    return {
        "uri": f"s3://moot/{name}",
        "sha256": digest.digest(),
        "size_bytes": len(blob),
    }


publish(
    "moot.agents",
    "AgentEnrolmentRequested",
    {
        "federation_id": federation,
        "agent_id": agent,
        "public_key": bytes(key.verify_key),
    },
)
for fact in facts():
    ticket = hashlib.sha256(fact.get("cohort_seed", b"") + agent.encode()).digest()
    if ticket <= fact.get("last_ticket", b""):
        # Train here. An update is the change of each parameter, in steps of
        # 2**-fractional_bits, in the order of the sorted tensor names.
        change = np.full(fact["num_parameters"], 0.125)
        steps = np.rint(change * 2 ** fact["fractional_bits"]).astype(np.int32)
        publish(
            "moot.updates",
            "UpdateSubmitted",
            {
                "federation_id": federation,
                "round": fact["round"],
                "agent_id": agent,
                "base_model_sha256": fact["base_model"]["sha256"],
                "update": store(safetensors.numpy.save({"update": steps})),
                "num_examples": 25,
                "loss_micros": 500_000,
            },
        )
    elif fact.get("agent_id") == agent:
        print(json.dumps({"reason": fact.get("reason", "accepted")}))
        break
