from rankwise.vision.clip_lit import BacklitEnhancer as BacklitEnhancer
from rankwise.vision.distilled.dataset import DistilledDataset as DistilledDataset
from rankwise.vision.distilled.students import train_student as train_student
from rankwise.vision.distilled.views import Views as Views
from rankwise.vision.hello import Distiller as Distiller
from rankwise.vision.lit.settings import LitSettings as LitSettings
from rankwise.vision.tokens import zero_tprune as zero_tprune
