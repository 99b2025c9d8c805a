package docs

import (
	"reflect"
	"strings"
	"testing"
)

// commands takes a shell script apart into its simple commands, those in $(…)
// included. It knows as much of the shell as the documentation uses.
func commands(script string) [][]string {
	var list [][]string
	var words []string
	var word strings.Builder
	inWord := false
	endWord := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	endCommand := func() {
		endWord()
		if words = command(words); len(words) > 0 {
			list = append(list, words)
		}
		words = nil
	}
	put := func(s string) { word.WriteString(s); inWord = true }
	for i := 0; i < len(script); i++ {
		switch c := script[i]; {
		case c == '\\' && i+1 < len(script):
			i++
			if script[i] != '\n' {
				put(script[i : i+1])
			}
		case c == '\'':
			end := strings.IndexByte(script[i+1:], '\'')
			if end < 0 {
				return list
			}
			put(script[i+1 : i+1+end])
			i += end + 1
		case c == '"':
			end := strings.IndexByte(script[i+1:], '"')
			if end < 0 {
				return list
			}
			put(script[i+1 : i+1+end])
			i += end + 1
		case strings.HasPrefix(script[i:], "$("):
			depth, end := 0, i+1
			for ; end < len(script); end++ {
				if script[end] == '(' {
					depth++
				} else if script[end] == ')' {
					if depth--; depth == 0 {
						break
					}
				}
			}
			list = append(list, commands(script[i+2:min(end, len(script))])...)
			put("$()")
			i = end
		case c == '#' && !inWord:
			end := strings.IndexByte(script[i:], '\n')
			if end < 0 {
				end = len(script) - i
			}
			i += end - 1
		case c == '\n' || c == ';' || c == '|' || c == '&':
			endCommand()
		case c == ' ' || c == '\t':
			endWord()
		default:
			put(string(c))
		}
	}
	endCommand()
	return list
}

// command removes from the words of a command what is before and behind it:
// keywords, assignments and redirections.
func command(words []string) []string {
	for len(words) > 0 {
		name, _, assigned := strings.Cut(words[0], "=")
		switch {
		case assigned && name != "" && !strings.ContainsAny(name, "-/."):
		case strings.Contains(" if then else elif fi while do done ! { } ", " "+words[0]+" "):
		default:
			for i, w := range words {
				if strings.HasPrefix(w, ">") || strings.HasPrefix(w, "<") {
					return words[:i]
				}
			}
			return words
		}
		words = words[1:]
	}
	return nil
}

func TestCommands(t *testing.T) {
	for script, want := range map[string][][]string{
		"a b  c # d\n":                      {{"a", "b", "c"}},
		"# nothing\n\n":                     nil,
		"a 'b c' \"d e\" \\\n  f\\ g":       {{"a", "b c", "d e", "f g"}},
		"X=1 a | b && c || d; e":            {{"a"}, {"b"}, {"c"}, {"d"}, {"e"}},
		"x=$(a b) && c $(d $(e)) f":         {{"a", "b"}, {"e"}, {"d", "$()"}, {"c", "$()", "f"}},
		"if a &&\n  b\nthen\n  c > d\nfi\n": {{"a"}, {"b"}, {"c"}},
	} {
		got := commands(script)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, want %q", script, got, want)
		}
	}
}
