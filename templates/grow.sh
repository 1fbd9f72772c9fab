# Has the root file system fill its disk: its partition is enlarged to the disk's end, if it is the last one on it, and then the
# file system to the partition's. Prints what it did. Exit status 21: the partition cannot be enlarged with what the system has.
set -eu
root= fs=
while read -r _ _ dev _ at rest; do
  if [ "$at" = / ]; then root=$dev fs=${rest##* - } fs=${fs%% *}; fi
done < /proc/self/mountinfo
part=$(readlink -f "/sys/dev/block/$root") || exit 0
[ -d "$part" ] || exit 0
device=/dev/${part##*/}
if [ -e "$part/partition" ]; then
  disk=${part%/*}
  read -r number < "$part/partition"
  read -r start < "$part/start"
  read -r size < "$part/size"
  read -r all < "$disk/size"
  last=yes
  for other in "$disk"/*/start; do
    read -r begins < "$other"
    [ "$begins" -le "$start" ] || last=
  done
  # GPT keeps its second copy in the last 33 sectors; less than 2 MiB is not worth it.
  if [ -n "$last" ] && [ $((all - start - size)) -gt 4096 ]; then
    whole=/dev/${disk##*/}
    if command -v growpart >/dev/null 2>&1; then
      growpart "$whole" "$number" >/dev/null
    elif command -v sfdisk >/dev/null 2>&1; then
      echo ', +' | sfdisk --quiet --no-reread --force -N "$number" "$whole" >/dev/null
    elif [ "$number" -le 4 ] && [ "$(od -An -tu1 -j450 -N1 "$whole" | tr -d ' ')" != 238 ]; then
      # The table of an MBR disk: 16 bytes for each partition from the 446th on, its sectors in the last four.
      new=$((all - start))
      [ "$new" -le 4294967295 ] || new=4294967295
      bytes=$(printf '\\%03o\\%03o\\%03o\\%03o' $((new & 255)) $((new >> 8 & 255)) $((new >> 16 & 255)) $((new >> 24)))
      # shellcheck disable=SC2059 # bytes in octal
      printf "$bytes" | dd of="$whole" bs=1 seek=$((446 + 16 * (number - 1) + 12)) conv=notrunc status=none
    else
      echo "neither growpart (cloud-guest-utils) nor sfdisk (fdisk) is there" >&2
      exit 21
    fi
    read -r now < "$part/size"
    [ "$now" != "$size" ] || partx --update --nr "$number" "$whole"
    echo "enlarged $device"
  fi
fi
case $fs in
  xfs) xfs_growfs / >/dev/null ;;
  btrfs) btrfs filesystem resize max / >/dev/null ;;
  ext*)
    if command -v resize2fs >/dev/null 2>&1; then
      resize2fs "$device" >/dev/null 2>&1
    else
      for grow in /lib/systemd/systemd-growfs /usr/lib/systemd/systemd-growfs; do
        if [ -x "$grow" ]; then "$grow" / >/dev/null; break; fi
      done
    fi ;;
esac
