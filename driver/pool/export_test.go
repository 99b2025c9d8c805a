package pool

// OnStep has f called between the steps of every change from now on.
func (p *Pool) OnStep(f func(name string)) { p.step = f }
