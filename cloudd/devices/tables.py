"""Rows of the fleet: invitations and devices."""

from __future__ import annotations

from sqlalchemy import Column, Float, MetaData, String, Table, Text

metadata = MetaData()

invites = Table(
    "invites",
    metadata,
    Column("token_id", String(32), primary_key=True),
    Column("secret_hash", String(64), nullable=False),  # the secret itself is never stored
    Column("name", String(64), nullable=False, default=""),  # the name the operator meant the device to have
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("spent_at", Float),
    Column("spent_by", String(63)),  # device id: only this device may repeat its enrolment with the token
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(63), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("enrolled_at", Float, nullable=False),
    Column("certificate_serial", String(40), nullable=False),
    Column("certificate_until", Float, nullable=False),
    Column("revoked_at", Float),
    Column("seen_at", Float),
    Column("online_until", Float, nullable=False, default=0.0),  # the heartbeat's promise; 0 when it said good-bye
    Column("version", String(32), nullable=False, default=""),
    Column("machine", String(128), nullable=False, default=""),
    Column("reported", Text),  # the last Report as JSON
    Column("desired", Text),  # service definition texts as a JSON list
    Column("desired_revision", String(64), nullable=False, default=""),
)
