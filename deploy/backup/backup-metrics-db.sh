#!/bin/sh
# /opt/scripts/backup-metrics-db.sh [FOLDER]: a checked, compressed copy of the database, and those of more than 30 days deleted. The service
# may run. Run it as the user `metrics`: by metrics-service-backup.timer, or by the line of metrics-service-backup.cron. What it prints says what
# was made; the exit code is 0 only if the backup is whole and on the disk.
set -eu
umask 027
exec /opt/metrics-service/.venv/bin/metrics-service backup \
  --config production --env-file /etc/metrics-service/config --keep 30d "${1:-/backups/metrics}"
