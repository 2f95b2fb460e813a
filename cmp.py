import json,numpy as np,sys
a,b=[json.load(open(f"/tmp/review4/{x}/results.json")) for x in sys.argv[1:3]]
worst={}
def walk(p,x,y):
    if type(x)!=type(y) and not (isinstance(x,(int,float)) and isinstance(y,(int,float))): print("type",p,x,y); return
    if isinstance(x,dict):
        if x.keys()!=y.keys(): print("keys",p,x.keys()^y.keys())
        for k in x: walk(p+"."+k,x[k],y[k])
    elif isinstance(x,list):
        if len(x)!=len(y): print("len",p,len(x),len(y))
        for i,(u,v) in enumerate(zip(x,y)): walk(p,u,v)
    elif isinstance(x,(int,float)) and not isinstance(x,bool):
        d=abs(x-y)/max(abs(x),abs(y),1e-12)
        if d>worst.get(p,(0,))[0]: worst[p]=(d,x,y)
    elif x!=y: print("diff",p,x,y)
walk("",{k:a[k] for k in("models","comparisons")},{k:b[k] for k in("models","comparisons")})
for p,d in sorted(worst.items(),key=lambda t:-t[1][0])[:14]: print(p,d)
