package rangemap

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScenarios runs the files in testdata. A map is drawn as one letter for
// each position; the letters a and b are of class 0, c and d of class 1, and so
// on. The commands:
//
//	new size=N value=L          begin with a new map
//	set start=N end=N value=L
//	resize size=N value=L
//	replace from=LL.. to=L      give all values in the list the value L
//	get pos=N
//	next pos=N class=N
//	prev pos=N class=N
//	extents start=N end=N
//	totals
//
// Commands that change the map print it.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var m *Map[letter]
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			number := func(name string) (n int64) {
				d.ScanArgs(t, name, &n)
				return n
			}
			value := func() letter {
				var s string
				d.ScanArgs(t, "value", &s)
				return letter(s[0] - 'a')
			}
			found := func(x Extent[letter], ok bool) string {
				if !ok {
					return "none\n"
				}
				return show(x)
			}
			switch d.Cmd {
			case "new":
				m = New(number("size"), value())
			case "set":
				m.Set(number("start"), number("end"), value())
			case "resize":
				m.Resize(number("size"), value())
			case "replace":
				var from, to string
				d.ScanArgs(t, "from", &from)
				d.ScanArgs(t, "to", &to)
				m.Replace(func(l letter) letter {
					if strings.Contains(from, l.String()) {
						return letter(to[0] - 'a')
					}
					return l
				})
			case "get":
				return show(m.Get(number("pos")))
			case "next":
				return found(m.Next(number("pos"), Class(number("class"))))
			case "prev":
				return found(m.Prev(number("pos"), Class(number("class"))))
			case "extents":
				var b strings.Builder
				for x := range m.Extents(number("start"), number("end")) {
					b.WriteString(show(x))
				}
				return b.String()
			case "totals":
				var b strings.Builder
				for c := range Class(MaxClasses) {
					if n := m.Total(c); n > 0 {
						fmt.Fprintf(&b, "class %d: %d\n", c, n)
					}
				}
				return b.String()
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			if err := m.Check(); err != nil {
				d.Fatalf(t, "%v", err)
			}
			return draw(m)
		})
	})
}

func show(x Extent[letter]) string {
	return fmt.Sprintf("[%d, %d) %v\n", x.Start, x.End, x.Value)
}

func draw(m *Map[letter]) string {
	var b strings.Builder
	for x := range m.Extents(0, m.Size()) {
		b.WriteString(strings.Repeat(x.Value.String(), int(x.Len())))
	}
	unit := "extents"
	if m.Len() == 1 {
		unit = "extent"
	}
	fmt.Fprintf(&b, "\n%d %s\n", m.Len(), unit)
	return b.String()
}
