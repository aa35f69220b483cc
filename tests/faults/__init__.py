"""Real faults on real runs: processes killed, disks filled, files damaged. ``make test-faults`` does them all."""
