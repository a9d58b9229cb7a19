# SPDX-License-Identifier: Apache-2.0
# fish completion for vsockctl(1)

function __vsockctl_ask
    set -l words (commandline -opc)
    set -l at (contains -i -- --control $words)
    if test -n "$at"
        vsockctl --control $words[(math $at + 1)] $argv 2>/dev/null
    else
        vsockctl $argv 2>/dev/null
    end
end

function __vsockctl_cids
    __vsockctl_ask status | awk 'NR > 1 { print $1 "\t" $2 }'
end

function __vsockctl_connections
    __vsockctl_ask connections | awk 'NR > 1 && $1 != "-" { print $1 }'
end

set -l commands status show connections kill top connect listen capture log-level suspend resume metrics reload add remove replace
set -l none "not __fish_seen_subcommand_from $commands"

complete -c vsockctl -f
complete -c vsockctl -n "$none" -l control -r -F -d 'the control socket'
complete -c vsockctl -n "$none" -l json -d 'print JSON'
complete -c vsockctl -n "$none" -l help -d 'print a summary and exit'
complete -c vsockctl -n "$none" -l version -d 'print the version and exit'
complete -c vsockctl -n "$none" -a status -d 'the VMs, and how each is'
complete -c vsockctl -n "$none" -a show -d 'all about one VM'
complete -c vsockctl -n "$none" -a connections -d 'connections, of one VM or of all'
complete -c vsockctl -n "$none" -a kill -d 'end a connection at once'
complete -c vsockctl -n "$none" -a top -d 'what is moved, live in a terminal'
complete -c vsockctl -n "$none" -a connect -d 'stdin and stdout to a port of the guest'
complete -c vsockctl -n "$none" -a listen -d 'run a command for each connection of the guest'
complete -c vsockctl -n "$none" -a capture -d 'packets into a file for Wireshark'
complete -c vsockctl -n "$none" -a log-level -d 'what vsockd logs from now on'
complete -c vsockctl -n "$none" -a suspend -d 'leave the rings of a VM, or of all, alone'
complete -c vsockctl -n "$none" -a resume -d 'go on with them'
complete -c vsockctl -n "$none" -a metrics -d 'print OpenMetrics'
complete -c vsockctl -n "$none" -a reload -d 'read the configuration file again'
complete -c vsockctl -n "$none" -a add -d 'a VM, into the configuration file too'
complete -c vsockctl -n "$none" -a remove -d 'a VM, out of the configuration file too'
complete -c vsockctl -n "$none" -a replace -d 'a fresh worker, nothing lost'
complete -c vsockctl -n '__fish_seen_subcommand_from show connections connect listen capture remove' -a '(__vsockctl_cids)'
complete -c vsockctl -n '__fish_seen_subcommand_from capture' -F
complete -c vsockctl -n '__fish_seen_subcommand_from add' -a 'socket= socket-mode= socket-owner= socket-group= uds-path= uds-mode= uds-owner= uds-group= forward-cid= forward-listen= connect= listen= ok= wait= tx-buffer-size= queue-size= groups= poll-us= max-connections= max-handshakes= max-connection-rate= max-bandwidth= max-buffer-memory= allow-outgoing= deny-outgoing= allow-incoming= deny-incoming= allow-uid= deny-uid= allow-gid= deny-gid= offer='
complete -c vsockctl -n '__fish_seen_subcommand_from suspend resume' -a '(__vsockctl_cids) all'
complete -c vsockctl -n '__fish_seen_subcommand_from replace' -a 'all (__vsockctl_cids)'
complete -c vsockctl -n '__fish_seen_subcommand_from kill' -a '(__vsockctl_connections)'
complete -c vsockctl -n '__fish_seen_subcommand_from log-level' -a 'error warning notice info debug'
