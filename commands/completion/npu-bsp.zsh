# SPDX-License-Identifier: MIT
# Completion of ./inv for zsh:  source <(./inv completion zsh)
_npu_bsp() {
    local inv=${words[1]} before=${words[CURRENT - 1]}
    local -a found
    case $before in
        --board | --like | --virtual-board) found=(${(f)"$($inv completion boards 2>/dev/null)"}) ;;
        --host | --from-host) found=(${(f)"$($inv completion hosts 2>/dev/null)"}) ;;
        --npu) found=(${(f)"$($inv completion npus 2>/dev/null)"}) ;;
        --model) found=(${(f)"$($inv completion models 2>/dev/null)"}) ;;
        --dtb | --base-dtb | --from-dtb | --image | --fragment | --file) _files; return ;;
        *) found=(${(f)"$($inv --complete -- "inv ${words[2,-1]}" 2>/dev/null)"}) ;;
    esac
    # Names such as virtual:a311d have a colon, which is no description here.
    compadd -a found || _files
}
compdef _npu_bsp inv ./inv
