"""The operator's tools: doctor, backup, key rotation and erasure, beside a running service or without one."""
