//! For zsh: as a file `_rbee` in a folder of `$fpath`, or sourced after `compinit`.

use super::{
    EVERYWHERE, global_flags, nodes, own_flags, pattern, programs, quoted, roles, spellings, tag, tokens,
    values_of_arguments,
};
use crate::cli::Flag;
use std::fmt::Write;

const WALK: &str = r#"
_rbee_kind() {
    local known
    for known in $values $_rbee_global_values; do
        case $known in
            ($1=*) kind=${known#*=}; return 0 ;;
            ($1) return 1 ;;
        esac
    done
    return 1
}

_rbee_offer() {
    local -a offered
    case $1 in
        (@files) _files ;;
        (@dirs) _files -/ ;;
        (?*) offered=(${(s:,:)1}); _describe value offered ;;
        (*) _message value ;;
    esac
}

_rbee() {
    local at= kind= args= word i
    local -a next flags values
    _rbee_start ${words[1]:t}
    _rbee_facts "$at"
    for ((i = 2; i < CURRENT; i++)); do
        word=${words[i]}
        case $word in
            (-*=*) ;;
            (-*) if _rbee_kind $word; then ((i++)); fi ;;
            (help) if [[ -z $at ]]; then _rbee_facts ''; fi ;;
            (*)
                if (( ${next[(I)${(b)word}:*]} )); then
                    at="${at:+$at }$word"
                    _rbee_facts "$at"
                fi
                ;;
        esac
    done
    if (( i > CURRENT )); then
        _rbee_offer "$kind"
        return
    fi
    case ${words[CURRENT]} in
        (-*=*)
            _rbee_kind ${words[CURRENT]%%=*} || return
            compset -P '*='
            _rbee_offer "$kind"
            ;;
        (-*)
            flags+=($_rbee_global)
            _describe -o flag flags
            ;;
        (*)
            if (( $#next )); then
                _describe command next
            else
                _rbee_offer "$args"
            fi
            ;;
    esac
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _rbee "$@"
else
"#;

pub fn script() -> String {
    let mut text = format!(
        "#compdef {}\n# Completions of rbee for zsh: rbee completions zsh > \"${{fpath[1]}}/_rbee\"\n\n",
        programs()
    );
    let everywhere = EVERYWHERE.iter().map(|(name, help)| entry(name, help));
    let global: Vec<String> = global_flags().flat_map(told).chain(everywhere).collect();
    let values: Vec<String> = global_flags().flat_map(tokens).collect();
    let _ = writeln!(text, "typeset -ga _rbee_global=(\n    {}\n)", global.join("\n    "));
    let _ = writeln!(text, "typeset -ga _rbee_global_values=({})\n", values.join(" "));
    text.push_str("_rbee_start() {\n    case $1 in\n");
    for (link, words) in roles() {
        let _ = writeln!(text, "        ({link}) at={} ;;", quoted(&words));
    }
    text.push_str("    esac\n}\n\n_rbee_facts() {\n    next=() flags=() values=() args=\n    case $1 in\n");
    for node in nodes() {
        let _ = writeln!(text, "        ({})", pattern(&node));
        if !node.next.is_empty() {
            let next: Vec<String> = node.next.iter().map(|(word, summary)| entry(word, summary)).collect();
            let _ = writeln!(text, "            next=({})", next.join(" "));
        }
        if let Some(command) = node.command {
            let flags: Vec<String> = own_flags(command).flat_map(told).collect();
            let values: Vec<String> = own_flags(command).flat_map(tokens).collect();
            let _ = writeln!(text, "            flags=({})", flags.join(" "));
            let _ = writeln!(text, "            values=({})", values.join(" "));
            let _ = writeln!(text, "            args={}", quoted(&tag(values_of_arguments(command))));
        }
        text.push_str("            ;;\n");
    }
    let _ = write!(text, "    esac\n}}\n{WALK}    compdef _rbee {}\nfi\n", programs());
    text
}

/// What `_describe` reads: a word, a colon, what it is.
fn entry(word: &str, help: &str) -> String {
    quoted(&format!("{word}:{}", help.replace('\\', r"\\")))
}

fn told(flag: &Flag) -> Vec<String> {
    spellings(flag).iter().map(|name| entry(name, flag.help)).collect()
}
