#!/bin/bash
# Start-up script for a worker on Google Compute Engine.
#
# Reads the settings from the metadata server at each start, so that the image and the disk contain
# no settings and no secrets. Attributes of the instance take precedence over those of the project:
#
#   task-queue                 sqs://NAME or NAME, or pubsub://projects/…
#   bucket-name                gs://NAME or NAME, or another bucket's URL
#   error-queue                receives error reports; default: the queue's name with -errors
#   cache-directory            the cache; default: /var/cache/task-host
#   host-flags                 more flags for `host run`
#   host-program               gs://BUCKET/OBJECT of the program, if the image does not contain it
#   delete-when-done           true: delete this machine when host has ended by itself, and make its
#                              managed instance group smaller
#   aws-region                 for SQS
#   aws-role-arn               for SQS: a role that trusts this machine's service account, or
#   aws-sqs-access-id, aws-sqs-secret-access-key      a user's key
set -euo pipefail

metadata=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1
storage=${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}
compute=${COMPUTE_API:-https://compute.googleapis.com}/compute/v1
# This directory is in memory.
run=${RUN:-/run/task-host}
program=${PROGRAM:-/usr/local/bin/host}

# Prints a value from the metadata server. Fails if the value does not exist.
value() {
    curl -fsS --retry 5 --retry-connrefused --max-time 30 -H 'Metadata-Flavor: Google' "$metadata/$1"
}

# Prints an attribute. Prints nothing if the attribute does not exist.
attribute() {
    value "instance/attributes/$1" 2>/dev/null || value "project/attributes/$1" 2>/dev/null || true
}

# Prints a token of the machine's service account.
token() {
    value instance/service-accounts/default/token | sed -E 's/.*"access_token" *: *"([^"]+)".*/\1/'
}

# Adds a scheme to a name, unless the name already has one.
url() {
    case $2 in
    '' | *://* | arn:*) printf %s "$2" ;;
    *) printf '%s://%s' "$1" "$2" ;;
    esac
}

install -d -m 0755 "$run"

if [[ ! -x $program ]]; then
    source=$(attribute host-program)
    if [[ -z $source ]]; then
        echo "task-host: there is no $program, and no attribute host-program to fetch it from" >&2
        exit 1
    fi
    path=${source#gs://}
    curl -fsS --retry 5 -H @- -o "$program.new" "$storage/${path%%/*}/${path#*/}" \
        <<< "Authorization: Bearer $(token)"
    chmod 0755 "$program.new"
    mv "$program.new" "$program"
fi

queue=$(url sqs "$(attribute task-queue)")
bucket=$(url gs "$(attribute bucket-name)")
if [[ -z $queue || -z $bucket ]]; then
    echo "task-host: the attributes task-queue and bucket-name have to be set" >&2
    exit 1
fi
cache=$(attribute cache-directory)
cache=${cache:-/var/cache/task-host}
role=$(attribute aws-role-arn)

id -u task-host > /dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin task-host
install -d -m 0700 -o task-host "$cache"

# Only the service manager reads this file.
umask 077
{
    printf 'HOST_QUEUE=%s\n' "$queue"
    printf 'HOST_BUCKET=%s\n' "$bucket"
    errors=$(url sqs "$(attribute error-queue)")
    if [[ -n $errors ]]; then printf 'HOST_ERROR_QUEUE=%s\n' "$errors"; fi
    printf 'HOST_CACHE_DIR=%s\n' "$cache"
    region=$(attribute aws-region)
    if [[ -n $region ]]; then printf 'HOST_REGION=%s\n' "$region"; fi
    if [[ -n $role ]]; then
        printf 'AWS_ROLE_ARN=%s\n' "$role"
        printf 'AWS_ROLE_SESSION_NAME=%s\n' "$(value instance/name)"
        printf 'AWS_WEB_IDENTITY_TOKEN_FILE=%s\n' "$run/token"
    else
        key=$(attribute aws-sqs-access-id)
        if [[ -n $key ]]; then
            printf 'AWS_ACCESS_KEY_ID=%s\n' "$key"
            printf 'AWS_SECRET_ACCESS_KEY=%s\n' "$(attribute aws-sqs-secret-access-key)"
        fi
    fi
} > "$run/environment"

if [[ -n $role ]]; then
    # Stores the machine's identity token, which AWS exchanges for the role. A token is valid for
    # one hour.
    cat > "$run/renew" <<RENEW
#!/bin/bash
set -euo pipefail
umask 022
curl -fsS --retry 5 -H 'Metadata-Flavor: Google' -o '$run/token.new' \\
    '$metadata/instance/service-accounts/default/identity?audience=sts.amazonaws.com&format=full'
mv '$run/token.new' '$run/token'
RENEW
    # Some systems mount /run without permission to execute programs.
    /bin/bash "$run/renew"
    systemd-run --unit=task-host-identity --on-active=30min --on-unit-active=30min /bin/bash "$run/renew"
fi

after=()
if [[ $(attribute delete-when-done) == true ]]; then
    # Runs when host has ended. A preempted machine stays in the group, so that the group replaces
    # it.
    {
        printf '#!/bin/bash\nset -euo pipefail\nmetadata=%q compute=%q\n' "$metadata" "$compute"
        declare -f value token
        cat <<'DONE'
[[ ${EXIT_STATUS-} == 0 && $(systemctl is-system-running) != stopping ]] || exit 0
[[ $(value instance/preempted) != TRUE ]] || exit 0
machine=$(value instance/zone)/instances/$(value instance/name)
if group=$(value instance/attributes/created-by 2>/dev/null); then
    request=(-X POST -H 'Content-Type: application/json' "$compute/$group/deleteInstances"
        -d "{\"instances\": [\"zones/${machine##*/zones/}\"]}")
else
    request=(-X DELETE "$compute/$machine")
fi
curl -fsS --retry 5 --retry-all-errors -o /dev/null -H @- "${request[@]}" <<< "Authorization: Bearer $(token)"
DONE
    } > "$run/done"
    # The + runs the script as root and without the sandbox of the host.
    after=(-p "ExecStopPost=+/bin/bash $run/done")
fi

# host-flags must be split into words.
# shellcheck disable=SC2046
exec systemd-run --unit=task-host --collect \
    -p EnvironmentFile="$run/environment" \
    -p User=task-host \
    -p WorkingDirectory="$cache" \
    -p ReadWritePaths="$cache" \
    -p TimeoutStopSec=90 \
    -p Restart=on-failure -p RestartSec=10 \
    -p SuccessExitStatus=4 -p RestartPreventExitStatus=2 \
    -p LimitNOFILE=65536 -p OOMPolicy=continue \
    -p NoNewPrivileges=yes -p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes \
    "${after[@]}" \
    "$program" run $(attribute host-flags)
