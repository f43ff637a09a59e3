#!/usr/bin/env bash
# Makes a certificate authority and one certificate for each exporter, for HTTPS between it and Prometheus.
#
#   ./generate-certs.sh NAME...            NAME: a host name or an IP address of a machine that runs an exporter
#   ./generate-certs.sh --renew [NAME...]  issues these anew, or all that there are
#   ./generate-certs.sh --client NAME...   certificates for clients that show one, such as Prometheus
#
# In ./certs, or in the directory that CERTS_DIR names:
#   ca.crt           for Prometheus (ca_file)
#   ca.key           signs new certificates; keep it, and keep it to yourself
#   NAME/node.crt    for that exporter (tls_cert)
#   NAME/node.key    for that exporter (tls_key)
#   NAME/client.crt  for that client (cert_file); exporters trust ca.crt (client_ca_file)
#   NAME/client.key  for that client (key_file)
#
# Each exporter's certificate is also valid for localhost, 127.0.0.1 and host.docker.internal. Run again, the
# script keeps the authority and every certificate that is still good; it issues anew what is missing, damaged,
# signed by another authority, or ends within 30 days. Keys are readable by their owner only, from the start.
set -euo pipefail

readonly days=397         # the longest that common clients accept
readonly ca_days=3650
readonly renew_seconds=$((30 * 24 * 3600))
certs=${CERTS_DIR:-certs}
renew=
# What is made: of exporters `node`, of clients `client`.
stem=node

fail() {
    echo "generate-certs.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
}

is_ipv4() {
    local part
    [[ $1 =~ ^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$ ]] || return 1
    for part in ${1//./ }; do
        [[ $part =~ ^(0|[1-9][0-9]{0,2})$ ]] && ((part <= 255)) || return 1
    done
}

# Only the shape: whether it is one, openssl decides when it writes the certificate.
is_ipv6() {
    [[ $1 == *:*:* && $1 =~ ^[0-9A-Fa-f:.]+$ ]]
}

is_hostname() {
    local label='[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?'
    ((${#1} <= 253)) && [[ $1 =~ ^$label(\.$label)*$ ]] && ! [[ $1 =~ ^[0-9.]+$ ]]
}

# The name becomes a directory and a line of a configuration for openssl, so nothing else may pass.
check_name() {
    [[ $1 != ca.crt && $1 != ca.key ]] || fail "\"$1\" is the name of a file of the authority; nothing was written"
    is_ipv4 "$1" || is_ipv6 "$1" || is_hostname "$1" ||
        fail "\"$1\" is neither a host name nor an IP address; nothing was written"
}

san_of() {
    local own="DNS:$1"
    if is_ipv4 "$1" || is_ipv6 "$1"; then own="IP:$1"; fi
    if [[ $stem == client ]]; then
        echo "$own"
        return
    fi
    local san="DNS:localhost,DNS:host.docker.internal,IP:127.0.0.1"
    # A name that is given twice is refused by some clients.
    if [[ ",$san," != *",$own,"* ]]; then san="$own,$san"; fi
    echo "$san"
}

# pair_matches CERT KEY: both can be read and belong together.
pair_matches() {
    local from_cert from_key
    from_cert=$(openssl x509 -in "$1" -noout -pubkey 2>/dev/null) || return 1
    from_key=$(openssl pkey -in "$2" -pubout 2>/dev/null) || return 1
    [[ $from_cert == "$from_key" ]]
}

# Makes a directory whose certificates others may read; one that is there keeps its mode.
open_directory() {
    [[ -d $1 ]] || { mkdir -p "$1" && chmod 755 "$1"; }
}

new_key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
        fail "openssl cannot make a key in $1"
}

make_ca() {
    local work=$1
    new_key "$work/ca.key"
    openssl req -x509 -new -sha256 -key "$work/ca.key" -days "$ca_days" -out "$work/ca.crt" \
        -config <(printf '%s\n' '[req]' 'distinguished_name=dn' 'x509_extensions=ca' 'prompt=no' \
            '[dn]' 'CN=fibre-exporter CA' \
            '[ca]' 'basicConstraints=critical,CA:TRUE,pathlen:0' 'keyUsage=critical,keyCertSign,cRLSign' \
            'subjectKeyIdentifier=hash') ||
        fail "openssl cannot make the certificate authority"
    chmod 644 "$work/ca.crt"
    mv "$work/ca.key" "$certs/ca.key"
    mv "$work/ca.crt" "$certs/ca.crt"
}

# The authority is never replaced silently: every certificate in use depends on it.
ensure_ca() {
    if [[ ! -e $certs/ca.key && ! -e $certs/ca.crt ]]; then
        make_ca "$1"
        echo "made a certificate authority: $certs/ca.crt"
        return
    fi
    [[ -e $certs/ca.key && -e $certs/ca.crt ]] ||
        fail "of $certs/ca.crt and $certs/ca.key only one is there. Put the other back, or remove both to begin" \
            "anew (all exporters and Prometheus then need the new files)"
    pair_matches "$certs/ca.crt" "$certs/ca.key" ||
        fail "$certs/ca.crt and $certs/ca.key are damaged or do not belong together. Put the right ones back, or" \
            "remove both to begin anew (all exporters and Prometheus then need the new files)"
    openssl x509 -in "$certs/ca.crt" -noout -checkend "$renew_seconds" >/dev/null ||
        fail "the certificate authority $certs/ca.crt has ended or ends within 30 days. Remove it and" \
            "$certs/ca.key to begin anew (all exporters and Prometheus then need the new files)"
    chmod 600 "$certs/ca.key"
    chmod 644 "$certs/ca.crt"
}

# Prints why the certificate cannot stay; prints nothing if it can.
reason_to_issue() {
    local crt=$certs/$1/$stem.crt key=$certs/$1/$stem.key check=-verify_hostname purpose=sslserver
    if [[ $stem == client ]]; then purpose=sslclient; fi
    if is_ipv4 "$1" || is_ipv6 "$1"; then check=-verify_ip; fi
    if [[ ! -e $crt && ! -e $key ]]; then
        echo "new"
    elif [[ -n $renew ]]; then
        echo "renewed"
    elif [[ ! -e $crt || ! -e $key ]]; then
        echo "one of its two files was missing"
    elif ! pair_matches "$crt" "$key"; then
        echo "its files were damaged or did not belong together"
    elif ! openssl x509 -in "$crt" -noout -checkend "$renew_seconds" >/dev/null; then
        echo "the old one has ended or would within 30 days"
    elif ! openssl verify -purpose "$purpose" -no-CApath -CAfile "$certs/ca.crt" "$check" "$1" "$crt" \
        >/dev/null 2>&1; then
        echo "the old one was not for this name or not signed by $certs/ca.crt"
    fi
}

issue() {
    local name=$1 work=$2 usage=serverAuth
    if [[ $stem == client ]]; then usage=clientAuth; fi
    new_key "$work/$stem.key"
    # The common name holds 64 characters at most; clients read only the alternative names.
    openssl req -new -key "$work/$stem.key" -subj "/CN=${name:0:64}" -out "$work/$stem.csr" ||
        fail "openssl cannot make the request for $name"
    openssl x509 -req -sha256 -in "$work/$stem.csr" -days "$days" -set_serial "0x$(openssl rand -hex 16)" \
        -CA "$certs/ca.crt" -CAkey "$certs/ca.key" -out "$work/$stem.crt" \
        -extfile <(printf '%s\n' 'basicConstraints=critical,CA:FALSE' \
            'keyUsage=critical,digitalSignature' "extendedKeyUsage=$usage" \
            'subjectKeyIdentifier=hash' 'authorityKeyIdentifier=keyid' \
            "subjectAltName=$(san_of "$name")") 2>"$work/log" ||
        fail "openssl cannot sign the certificate for $name: $(cat "$work/log")"
    chmod 644 "$work/$stem.crt"
    open_directory "$certs/$name"
    mv "$work/$stem.key" "$certs/$name/$stem.key"
    mv "$work/$stem.crt" "$certs/$name/$stem.crt"
}

ensure_certificate() {
    local reason
    reason=$(reason_to_issue "$1")
    if [[ -n $reason ]]; then
        issue "$1" "$2"
        echo "issued $certs/$1/$stem.crt ($reason)"
    else
        chmod 600 "$certs/$1/$stem.key"
        chmod 644 "$certs/$1/$stem.crt"
        echo "kept $certs/$1/$stem.crt"
    fi
}

main() {
    local name
    while [[ ${1-} == -* ]]; do
        case $1 in
        -h | --help) usage; exit 0 ;;
        --renew) renew=yes ;;
        --client) stem=client ;;
        *) usage >&2; exit 2 ;;
        esac
        shift
    done
    if (($# == 0)); then
        [[ -n $renew ]] || { usage >&2; exit 2; }
        for name in "$certs"/*/"$stem".crt; do
            [[ ! -e $name ]] || set -- "$@" "$(basename "$(dirname "$name")")"
        done
        (($#)) || fail "there is no certificate in $certs to renew"
    fi
    command -v openssl >/dev/null || fail "openssl is not installed (Debian: apt-get install openssl)"
    for name in "$@"; do check_name "$name"; done

    umask 077 # no key is readable by others, not even between its making and a chmod
    open_directory "$certs"
    # In the same directory, so that `mv` replaces a file in one step.
    work=$(mktemp -d "$certs/.new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    ensure_ca "$work"
    for name in "$@"; do ensure_certificate "$name" "$work"; done
}

main "$@"
