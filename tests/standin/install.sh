#!/bin/sh
# p1-banner: k3s is played by a stand-in here: it runs no containers and is good for trying p1 only.
# Installer of the k3s stand-in, for p1's tests and offline demo. It is not k3s' installer: it was
# written from that one's documented contract (variables, files, units, scripts, messages) so that p1
# can drive either in the same way. It never reaches the internet.
#
# Variables: INSTALL_K3S_SKIP_DOWNLOAD (true|binary), _SKIP_START, _SKIP_ENABLE, _FORCE_RESTART, _EXEC,
#   _NAME, _BIN_DIR, _BIN_DIR_READ_ONLY, _SYSTEMD_DIR, _SYMLINK (skip|force), _TYPE, _VERSION, _CHANNEL,
#   _ARTIFACT_URL (where k3s and sha256sum-<arch>.txt lie), and K3S_*, which the service gets to see.
# K3S_STANDIN_ROOT is put before every path, for tests without a machine.
# Faults, looked for where k3s-standin looks (see src/faults.rs):
#   install-fail=STAGE  install-fail-once=STAGE  install-hang=STAGE
#   with STAGE one of env, verify, download, symlinks, killall, uninstall, remove, unit, enable, start.
set -e

ROOT=${K3S_STANDIN_ROOT:-}

info() { echo "[INFO]  $*"; }
warn() { echo "[WARN]  $*" >&2; }
fatal() { echo "[ERROR]  $*" >&2; exit 1; }

# --- faults ---------------------------------------------------------------------------------------

# fault NAME: prints the fault's value and its marker's path, fails when it is not set.
fault() {
    for dir in "$ROOT/etc/p1-standin/faults" "${K3S_STANDIN_FAULTS:-}"; do
        [ -d "$dir" ] || continue
        for file in "$dir"/*; do
            [ -f "$file" ] || continue
            case "${file##*/}" in
                "$1") echo "$(cat "$file") $file"; return 0 ;;
                "$1="*) echo "${file##*=} $file"; return 0 ;;
                *)
                    value=$(sed -n "s/^$1=//p" "$file" | head -n 1)
                    [ -z "$value" ] || { echo "$value -"; return 0; }
                    ;;
            esac
        done
    done
    case ",${K3S_STANDIN_FAULTS:-}," in
        *",$1="*) value=${K3S_STANDIN_FAULTS##*"$1="}; echo "${value%%,*} -"; return 0 ;;
    esac
    return 1
}

# stage NAME: the place where the faults of that stage strike.
stage() {
    for kind in install-fail install-fail-once install-hang; do
        found=$(fault "$kind") || continue
        [ "${found%% *}" = "$1" ] || continue
        case "$kind" in
            install-hang) warn "stand-in fault $kind=$1"; exec sleep 86400 ;;
            *-once) rm -f "${found#* }" ;;
        esac
        fatal "stand-in fault $kind=$1"
    done
}

# --- environment ----------------------------------------------------------------------------------

verify_system() {
    OPENRC=
    if ! command -v systemctl >/dev/null 2>&1; then
        [ ! -x /sbin/openrc-run ] || { OPENRC=true; return 0; }
        fatal 'Can not find systemd or openrc to use as a process supervisor for k3s'
    fi
}

# Which command, which service name, which directories.
setup_env() {
    case "${1:-}" in
        -* | "")
            if [ -z "${K3S_URL:-}" ]; then
                COMMAND=server
            else
                if [ -z "${K3S_TOKEN:-}" ] && [ -z "${K3S_TOKEN_FILE:-}" ]; then
                    fatal "Defaulted k3s exec command to 'agent' because K3S_URL is defined, but K3S_TOKEN or K3S_TOKEN_FILE is not defined."
                fi
                COMMAND=agent
            fi
            ;;
        *)
            COMMAND=$1
            shift
            ;;
    esac
    case "${K3S_URL:-}" in
        "" | https://*) ;;
        *) fatal "Only https:// URLs are supported for K3S_URL (have ${K3S_URL})" ;;
    esac

    # Each argument on a line of its own, quoted for systemd.
    ARGUMENTS=
    for argument in "$@"; do
        escaped=$(printf '%s' "$argument" | sed "s/'/\\\\x27/g")
        ARGUMENTS="$ARGUMENTS \\
	'$escaped'"
    done

    if [ -n "${INSTALL_K3S_NAME:-}" ]; then
        NAME=k3s-$INSTALL_K3S_NAME
    elif [ "$COMMAND" = server ]; then
        NAME=k3s
    else
        NAME=k3s-$COMMAND
    fi
    case "$NAME" in
        *[!a-zA-Z0-9_.@-]*) fatal "Invalid characters for system name: $NAME" ;;
    esac

    TYPE=${INSTALL_K3S_TYPE:-notify}
    SYSTEMD_DIR=${INSTALL_K3S_SYSTEMD_DIR:-$ROOT/etc/systemd/system}
    if [ -n "${INSTALL_K3S_BIN_DIR:-}" ]; then
        BIN_DIR=$INSTALL_K3S_BIN_DIR
    else
        BIN_DIR=$ROOT/usr/local/bin
        # A read-only /usr sends the binary, and with it the scripts, to /opt/bin.
        if ! $SUDO sh -c "touch '$BIN_DIR/k3s-ro-test' && rm -f '$BIN_DIR/k3s-ro-test'" 2>/dev/null &&
            [ -d "$ROOT/opt/bin" ]; then
            BIN_DIR=$ROOT/opt/bin
        fi
    fi
    [ "${INSTALL_K3S_BIN_DIR_READ_ONLY:-}" != true ] || INSTALL_K3S_SKIP_DOWNLOAD=true
    DATA_DIR=${K3S_DATA_DIR:-/var/lib/rancher/k3s}
    case "$DATA_DIR" in
        "$ROOT"*) ;;
        *) DATA_DIR=$ROOT$DATA_DIR ;;
    esac
    if [ -n "$OPENRC" ]; then
        UNIT=$ROOT/etc/init.d/$NAME
        ENVIRONMENT=$ROOT/etc/rancher/k3s/$NAME.env
    else
        UNIT=$SYSTEMD_DIR/$NAME.service
        ENVIRONMENT=$UNIT.env
    fi
    KILLALL=$BIN_DIR/k3s-killall.sh
    UNINSTALL=$BIN_DIR/$NAME-uninstall.sh
    HASHES_BEFORE=$(installed_hashes)
}

# Only these three are looked at: an edited config.yaml alone is "no change".
installed_hashes() {
    $SUDO sha256sum "$BIN_DIR/k3s" "$UNIT" "$ENVIRONMENT" 2>/dev/null || true
}

# --- binary ---------------------------------------------------------------------------------------

fetch() {
    case "$1" in
        file://*) cat "${1#file://}" ;;
        *) curl -fsSL "$1" ;;
    esac
}

download_and_verify() {
    case "${INSTALL_K3S_SKIP_DOWNLOAD:-}" in
        true | binary)
            info 'Skipping k3s download and verify'
            stage verify
            [ -x "$BIN_DIR/k3s" ] || fatal "Executable k3s binary not found at $BIN_DIR/k3s"
            return 0
            ;;
    esac
    stage download
    if [ -z "${INSTALL_K3S_ARTIFACT_URL:-}" ]; then
        fatal 'Download failed: the stand-in installer has no release to fetch; set INSTALL_K3S_SKIP_DOWNLOAD=true or INSTALL_K3S_ARTIFACT_URL'
    fi
    if [ -n "${INSTALL_K3S_VERSION:-}" ]; then
        info "Using $INSTALL_K3S_VERSION as release"
    else
        info "Finding release for channel ${INSTALL_K3S_CHANNEL:-stable}"
    fi
    arch=$(uname -m)
    case "$arch" in
        x86_64) arch=amd64 ;;
        aarch64) arch=arm64 ;;
    esac
    info "Downloading hash $INSTALL_K3S_ARTIFACT_URL/sha256sum-$arch.txt"
    expected=$(fetch "$INSTALL_K3S_ARTIFACT_URL/sha256sum-$arch.txt" | sed -n 's/^\([0-9a-f]*\)  *k3s$/\1/p') || fatal 'Download failed'
    if [ -x "$BIN_DIR/k3s" ] && [ "$(sha256sum <"$BIN_DIR/k3s" | cut -d' ' -f1)" = "$expected" ]; then
        info 'Skipping binary downloaded, installed k3s matches hash'
        return 0
    fi
    info "Downloading binary $INSTALL_K3S_ARTIFACT_URL/k3s"
    temporary=$(mktemp)
    fetch "$INSTALL_K3S_ARTIFACT_URL/k3s" >"$temporary" || fatal 'Download failed'
    stage verify
    info 'Verifying binary download'
    found=$(sha256sum <"$temporary" | cut -d' ' -f1)
    [ "$found" = "$expected" ] || fatal "Download sha256 does not match $expected, got $found"
    info "Installing k3s to $BIN_DIR/k3s"
    chmod 755 "$temporary"
    $SUDO mv -f "$temporary" "$BIN_DIR/k3s"
}

create_symlinks() {
    [ "${INSTALL_K3S_BIN_DIR_READ_ONLY:-}" != true ] || return 0
    [ "${INSTALL_K3S_SYMLINK:-}" != skip ] || return 0
    for tool in kubectl crictl ctr; do
        if [ "${INSTALL_K3S_SYMLINK:-}" != force ]; then
            if [ -e "$BIN_DIR/$tool" ]; then
                info "Skipping $BIN_DIR/$tool symlink to k3s, already exists"
                continue
            fi
            other=$(command -v "$tool" 2>/dev/null || true)
            if [ -n "$other" ]; then
                info "Skipping $BIN_DIR/$tool symlink to k3s, command exists in PATH at $other"
                continue
            fi
        fi
        info "Creating $BIN_DIR/$tool symlink to k3s"
        $SUDO ln -sf k3s "$BIN_DIR/$tool"
    done
}

# --- the scripts left behind ------------------------------------------------------------------------

create_killall() {
    [ "${INSTALL_K3S_BIN_DIR_READ_ONLY:-}" != true ] || return 0
    info "Creating killall script $KILLALL"
    {
        cat <<SCRIPT
#!/bin/sh
# Written by the installer of the k3s stand-in.
[ -n "$ROOT" ] || [ \$(id -u) -eq 0 ] || exec sudo K3S_DATA_DIR="\${K3S_DATA_DIR:-}" "\$0" "\$@"
ROOT='$ROOT'
SYSTEMD_DIR='$SYSTEMD_DIR'
DATA_DIR=\${K3S_DATA_DIR:-'$DATA_DIR'}
SCRIPT
        cat <<'SCRIPT'

# Processes that `systemctl stop` leaves (KillMode=process): the shims, known by where they lie.
shims() {
    for process in /proc/[0-9]*; do
        tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q "^$DATA_DIR/data/[^/]*/bin/containerd-shim" &&
            echo "${process#/proc/}"
    done
    return 0
}

# What is mounted below a directory, deepest first.
unmount_below() {
    awk -v prefix="$1" 'index($2, prefix) == 1 { print $2 }' /proc/self/mounts | sort -r |
        while read -r mounted; do umount -f "$mounted" && rm -rf "$mounted"; done
    return 0
}

set -x
for unit in "$SYSTEMD_DIR"/k3s*.service; do
    [ -s "$unit" ] && systemctl stop "$(basename "$unit")"
done
for unit in "$ROOT"/etc/init.d/k3s*; do
    [ -x "$unit" ] && "$unit" stop
done
for process in $(shims); do
    kill -9 "$process"
done

# Below a root prefix the machine is not ours to clean.
if [ -z "$ROOT" ]; then
    for directory in /run/k3s /var/lib/kubelet/pods /var/lib/kubelet/plugins /run/netns/cni-; do
        unmount_below "$directory"
    done
    for link in cni0 flannel.1 flannel-v6.1 kube-ipvs0 flannel-wg flannel-wg-v6; do
        [ -e "/sys/class/net/$link" ] && ip link delete "$link"
    done
    rm -rf /var/lib/cni/
    for tables in iptables ip6tables; do
        command -v "$tables-save" >/dev/null 2>&1 || continue
        "$tables-save" | grep -v KUBE- | grep -v CNI- | grep -iv flannel | "$tables-restore"
    done
fi
rm -f "$ROOT/run/k3s/containerd/standin-shim.pid"
exit 0
SCRIPT
    } | $SUDO tee "$KILLALL" >/dev/null
    $SUDO chmod 755 "$KILLALL"
}

create_uninstall() {
    [ "${INSTALL_K3S_BIN_DIR_READ_ONLY:-}" != true ] || return 0
    info "Creating uninstall script $UNINSTALL"
    {
        cat <<SCRIPT
#!/bin/sh
# Written by the installer of the k3s stand-in.
[ -n "$ROOT" ] || [ \$(id -u) -eq 0 ] || exec sudo K3S_DATA_DIR="\${K3S_DATA_DIR:-}" "\$0" "\$@"
ROOT='$ROOT'
NAME='$NAME'
SYSTEMD_DIR='$SYSTEMD_DIR'
BIN_DIR='$BIN_DIR'
DATA_DIR=\${K3S_DATA_DIR:-'$DATA_DIR'}
SCRIPT
        cat <<'SCRIPT'
set -x
"$BIN_DIR/k3s-killall.sh"

if command -v systemctl; then
    systemctl disable "$NAME"
    systemctl reset-failed "$NAME"
    systemctl daemon-reload
fi
if command -v rc-update; then
    rc-update delete "$NAME" default
fi
rm -f "$SYSTEMD_DIR/$NAME.service" "$SYSTEMD_DIR/$NAME.service.env"
rm -f "$ROOT/etc/init.d/$NAME" "$ROOT/etc/rancher/k3s/$NAME.env" "$ROOT/etc/logrotate.d/$NAME"

# The script goes last and goes always, so its absence means that it has run.
trap 'rm -f "$BIN_DIR/$NAME-uninstall.sh"' EXIT

if ls "$SYSTEMD_DIR"/k3s*.service "$ROOT"/etc/init.d/k3s* 2>/dev/null | grep -q .; then
    set +x
    echo 'Additional k3s services installed, skipping uninstall of k3s' >&2
    set -x
    exit
fi

for tool in kubectl crictl ctr; do
    if [ -L "$BIN_DIR/$tool" ]; then
        rm -f "$BIN_DIR/$tool"
    fi
done
# /etc/rancher/node stays, with the node's password.
rm -rf "$ROOT/etc/rancher/k3s" "$ROOT/run/k3s" "$ROOT/run/flannel" "$DATA_DIR" "$ROOT/var/lib/kubelet"
rm -f "$BIN_DIR/k3s" "$BIN_DIR/k3s-killall.sh"
exit 0
SCRIPT
    } | $SUDO tee "$UNINSTALL" >/dev/null
    $SUDO chmod 755 "$UNINSTALL"
}

# --- the service ------------------------------------------------------------------------------------

# Unit and environment go before they are written anew; whoever dies in between leaves neither.
remove_service() {
    [ -n "$OPENRC" ] || $SUDO systemctl disable "$NAME" >/dev/null 2>&1 || true
    $SUDO rm -f "$UNIT" "$ENVIRONMENT"
}

create_env_file() {
    info "env: Creating environment file $ENVIRONMENT"
    $SUDO mkdir -p "${ENVIRONMENT%/*}" "${UNIT%/*}"
    $SUDO sh -c "umask 077; : >'$ENVIRONMENT'; chmod 600 '$ENVIRONMENT'"
    # Double quotes, because systemd and a shell read escapes within them alike.
    env | grep -E '^(K3S_|CONTAINERD_|(NO|HTTP|HTTPS|no|http|https)_(PROXY|proxy)=)' |
        sed 's/[\\"$`]/\\&/g; s/=\(.*\)/="\1"/' |
        $SUDO tee -a "$ENVIRONMENT" >/dev/null
}

# By its documented paths: /etc/init.d, supervise-daemon, a log in /var/log.
create_openrc_service_file() {
    info "openrc: Creating service file $UNIT"
    $SUDO tee "$UNIT" >/dev/null <<SERVICE
#!/sbin/openrc-run

depend() {
    after network-online
    want cgroups
}

supervisor=supervise-daemon
name=$NAME
command="$BIN_DIR/k3s"
command_args="$COMMAND$(printf '%s' "$ARGUMENTS" | tr -d '\\\n')"
output_log=/var/log/$NAME.log
error_log=/var/log/$NAME.log
pidfile=/run/$NAME.pid
respawn_delay=5
respawn_max=0

set -o allexport
if [ -f /etc/environment ]; then . /etc/environment; fi
if [ -f $ENVIRONMENT ]; then . $ENVIRONMENT; fi
set +o allexport
SERVICE
    $SUDO chmod 755 "$UNIT"
}

create_service_file() {
    [ -z "$OPENRC" ] || { create_openrc_service_file; return; }
    info "systemd: Creating service file $UNIT"
    $SUDO tee "$UNIT" >/dev/null <<UNITFILE
[Unit]
Description=Lightweight Kubernetes (p1 stand-in for k3s)
Documentation=man:p1(1)
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type=$TYPE
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-$ENVIRONMENT
KillMode=process
Delegate=yes
User=root
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart=$BIN_DIR/k3s \\
    $COMMAND$ARGUMENTS

UNITFILE
}

enable_and_start() {
    stage enable
    [ "${INSTALL_K3S_SKIP_ENABLE:-}" != true ] || return 0
    if [ -n "$OPENRC" ]; then
        info "openrc: Enabling $NAME service for default runlevel"
        $SUDO rc-update add "$NAME" default >/dev/null
        [ "${INSTALL_K3S_SKIP_START:-}" = true ] || $SUDO "$UNIT" restart
        return 0
    fi
    info "systemd: Enabling $NAME unit"
    $SUDO systemctl enable "$UNIT" >/dev/null
    $SUDO systemctl daemon-reload >/dev/null

    [ "${INSTALL_K3S_SKIP_START:-}" != true ] || return 0
    if [ "$HASHES_BEFORE" = "$(installed_hashes)" ] && [ "${INSTALL_K3S_FORCE_RESTART:-}" != true ]; then
        info 'No change detected so skipping service start'
        return 0
    fi
    stage start
    info "systemd: Starting $NAME"
    # Blocks until the service says READY, for ever if it never does.
    $SUDO systemctl restart "$NAME"
}

# --- main -------------------------------------------------------------------------------------------

SUDO=
[ -n "$ROOT" ] || [ "$(id -u)" -eq 0 ] || SUDO=sudo
info "This is the installer of p1's k3s stand-in, not k3s'"
# INSTALL_K3S_EXEC comes before the arguments; quotes in it count, anything else special does not.
eval "set -- $(printf '%s' "${INSTALL_K3S_EXEC:-}" | sed 's/[][$`\\;&|<>(){}*?!#~]/\\&/g') \"\$@\""
verify_system
stage env
setup_env "$@"
download_and_verify
stage symlinks
create_symlinks
stage killall
create_killall
stage uninstall
create_uninstall
stage remove
remove_service
stage unit
create_env_file
create_service_file
enable_and_start
