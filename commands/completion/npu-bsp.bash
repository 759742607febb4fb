# SPDX-License-Identifier: MIT
# Completion of ./inv for bash:  source <(./inv completion bash)
_npu_bsp() {
    local inv=${COMP_WORDS[0]} word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local words line
    case $before in
        --board | --like | --virtual-board) words=$("$inv" completion boards 2>/dev/null) ;;
        --host | --from-host) words=$("$inv" completion hosts 2>/dev/null) ;;
        --npu) words=$("$inv" completion npus 2>/dev/null) ;;
        --model) words=$("$inv" completion models 2>/dev/null) ;;
        --dtb | --base-dtb | --from-dtb | --image | --fragment | --file) words= ;;
        *)
            # Invoke takes the words before a flag that is being typed, or the whole line.
            line="inv ${COMP_WORDS[*]:1}"
            words=$("$inv" --complete -- "$line" 2>/dev/null)
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    # Nothing of ours fits: names of files.
    ((${#COMPREPLY[@]})) || mapfile -t COMPREPLY < <(compgen -f -- "$word")
}
complete -o filenames -F _npu_bsp inv ./inv
