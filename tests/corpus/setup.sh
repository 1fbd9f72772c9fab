echo "$1" >/root/setup
