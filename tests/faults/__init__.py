"""What happens when things go wrong: kills, full disks, bad files, lost peers."""
