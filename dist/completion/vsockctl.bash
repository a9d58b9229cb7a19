# SPDX-License-Identifier: Apache-2.0
# bash completion for vsockctl(1)

# The VMs of the socket that the words before name.
_vsockctl_cids() {
	local control=() i
	for ((i = 1; i < COMP_CWORD; i++)); do
		if [ "${COMP_WORDS[i]}" = --control ]; then
			control=(--control "${COMP_WORDS[i + 1]}")
		fi
	done
	vsockctl "${control[@]}" status 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_vsockctl() {
	local current=${COMP_WORDS[COMP_CWORD]} command='' at=0 i
	COMPREPLY=()
	if [ "${COMP_WORDS[COMP_CWORD - 1]}" = --control ]; then
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
	fi
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--control) i=$((i + 1)) ;;
		-*) ;;
		*)
			command=${COMP_WORDS[i]}
			at=$((COMP_CWORD - i))
			break
			;;
		esac
	done
	case $command:$at in
	:*)
		mapfile -t COMPREPLY < <(compgen -W '--control --json --help --version
			status show connections kill top connect listen capture log-level suspend
			resume metrics reload add remove replace' \
			-- "$current")
		;;
	show:1 | connections:1 | connect:1 | listen:1 | capture:1 | remove:1)
		mapfile -t COMPREPLY < <(compgen -W "$(_vsockctl_cids)" -- "$current")
		;;
	suspend:1 | resume:1 | replace:1)
		mapfile -t COMPREPLY < <(compgen -W "all $(_vsockctl_cids)" -- "$current")
		;;
	log-level:1)
		mapfile -t COMPREPLY < <(compgen -W 'error warning notice info debug' -- "$current")
		;;
	add:1) ;;
	add:*)
		# A value, mostly a path: words are broken at the sign.
		if [ "${COMP_WORDS[COMP_CWORD - 1]}" = '=' ]; then
			mapfile -t COMPREPLY < <(compgen -f -- "$current")
			return
		fi
		mapfile -t COMPREPLY < <(compgen -W 'socket= socket-mode= socket-owner=
			socket-group= uds-path= uds-mode= uds-owner= uds-group= forward-cid=
			forward-listen= connect= listen= ok= wait= tx-buffer-size= queue-size=
			groups= poll-us= max-connections= max-handshakes= max-connection-rate=
			max-bandwidth= max-buffer-memory= allow-outgoing= deny-outgoing=
			allow-incoming= deny-incoming= allow-uid= deny-uid= allow-gid=
			deny-gid= offer=' -- "$current")
		compopt -o nospace
		;;
	capture:2)
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		;;
	listen:*)
		mapfile -t COMPREPLY < <(compgen -c -- "$current")
		;;
	esac
}
complete -F _vsockctl vsockctl
