# SPDX-License-Identifier: MIT
# Completion of ./inv for fish:  ./inv completion fish | source
function __npu_bsp
    set -l words (commandline -opc)
    set -l inv $words[1]
    switch "$words[-1]"
        case --board --like --virtual-board
            $inv completion boards 2>/dev/null
        case --host --from-host
            $inv completion hosts 2>/dev/null
        case --npu
            $inv completion npus 2>/dev/null
        case --model
            $inv completion models 2>/dev/null
        case --dtb --base-dtb --from-dtb --image --fragment --file
            __fish_complete_path (commandline -ct)
        case '*'
            $inv --complete -- "inv $words[2..-1] "(commandline -ct) 2>/dev/null
    end
end
complete -c inv -f -a '(__npu_bsp)'
